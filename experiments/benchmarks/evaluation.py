"""Where the time of `python -m src.eval +exp=sdp_mvtec` goes.

`python -m experiments.benchmarks.evaluation --data ../shared/data`, and on a GPU `... --accelerator gpu --images 1725
[--kept] --backbone ViT-L-14-336 test_data.image_size=518 trainer.precision=bf16-mixed`. What follows the options are
overrides of the command. On a GPU, tower and maps are the device's own time, the other parts that of the main process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from experiments.benchmarks.large_data import enlarged_demo
from experiments.benchmarks.runs import ARCHITECTURE, accelerator, common_options, save_random_weights, time_command
from experiments.benchmarks.timing import print_table, write_results

# What is timed, in the order of the table; `test` holds all the others.
TEST, TEXT, TOWER, MAPS, UPDATE, METRICS = "test", "sentences", "tower", "maps", "masks to metrics", "metrics"
Span = tuple[torch.cuda.Event, torch.cuda.Event]


def main() -> None:
    """Run the evaluation some times, print the shares of its wall time and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mvtec")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks"), help="weights and cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch, and processes that load images")
    parser.add_argument("--accelerator", type=accelerator, default="cpu")
    parser.add_argument("--backbone", default=ARCHITECTURE)
    parser.add_argument("--images", type=int, help="draw so many images of 700 pixels instead of reading --data")
    parser.add_argument("--kept", action="store_true", help="they are read before the test begins")
    parser.add_argument("--results", default="evaluation", help="name of the file of results")
    parser.add_argument("--profile", type=Path, help=argparse.SUPPRESS)  # of the process that is timed
    options, overrides = parser.parse_known_args()
    if options.profile:
        profile(options.profile, overrides)
        return
    weights = save_random_weights(options.work, options.backbone)
    fixed = common_options(options.data, weights, options.threads, options.accelerator)
    if options.images:
        fixed.append(f"test_data.root={enlarged_demo(options.work, options.images, side=700).resolve()}")
    if options.kept:
        fixed += ["test_data._target_=experiments.benchmarks.large_data.KeptMVTec", "test_data.num_workers=0"]
    rounds = [run(options, ["+exp=sdp_mvtec", *fixed, *overrides]) for _ in range(options.rounds)]
    rows = shares({name: median(seconds[name] for seconds in rounds) for name in rounds[0]})
    title = " ".join(["sdp_mvtec", options.backbone, *overrides])
    print_table(title, rows)
    settings = {key: str(value) for key, value in vars(options).items()}
    write_results(options.results, {title: rows}, **settings)


def run(options: argparse.Namespace, overrides: list[str]) -> dict[str, float]:
    """The seconds of one evaluation, in a process of its own."""
    with TemporaryDirectory() as folder:
        places = [f"paths.output_dir={folder}/run", f"paths.cache_dir={options.work.resolve()}/cache"]
        program = ["experiments.benchmarks.evaluation", "--profile", f"{folder}/profile.json"]
        whole = time_command(options.threads, *program, *overrides, *places).whole
        return {"command": whole, **json.loads(Path(folder, "profile.json").read_text())}


def shares(seconds: dict[str, float]) -> list[dict[str, Any]]:
    """A row a part, with its share of the whole command and of the test without the sentences."""
    loop = seconds[TEST] - seconds[TEXT]
    parts = {name: seconds[name] for name in (TOWER, MAPS, UPDATE, METRICS)}
    parts["waiting for images, callbacks"] = loop - sum(parts.values())
    parts[TEXT] = seconds[TEXT]
    parts["start, weights, results"] = seconds["command"] - seconds[TEST]
    return [
        {
            "part": name,
            "seconds": round(value, 2),
            "% of the command": round(100 * value / seconds["command"], 1),
            "% of the test": round(100 * value / loop, 1) if place < 5 else None,
        }
        for place, (name, value) in enumerate(parts.items())
    ]


def profile(target: Path, overrides: list[str]) -> None:
    """Run the evaluation in this process with a clock around its parts."""
    from lightning import Trainer

    from src.anomaly_module import AnomalyModule
    from src.eval import main
    from src.metrics.benchmark_metrics import BenchmarkMetrics
    from src.models.dual_path import DualPath
    from src.models.sdp import SDP
    from src.models.text import PromptEnsemble

    seconds: dict[str, float] = defaultdict(float)
    spans: dict[str, list[Span]] = defaultdict(list)
    for name, owner, method in (
        (TEST, Trainer, "test"),
        (TEXT, PromptEnsemble, "prepare"),
        (TOWER, DualPath, "forward"),
        (MAPS, SDP, "score"),
        (UPDATE, AnomalyModule, "_update"),
        (METRICS, BenchmarkMetrics, "finish"),  # of each category, when its last image is there
    ):
        function = getattr(owner, method)
        on_gpu = torch.cuda.is_available() and name in (TOWER, MAPS)
        setattr(owner, method, _spanned(function, spans[name]) if on_gpu else _timed(function, seconds, name))
    sys.argv = ["src/eval.py", *overrides]
    main()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds |= {name: sum(start.elapsed_time(end) for start, end in own) / 1e3 for name, own in spans.items()}
    target.write_text(json.dumps(seconds))


def _spanned(function: Callable[..., Any], spans: list[Span]) -> Callable[..., Any]:
    """Mark where the device begins and ends a call's work, without waiting for it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        try:
            return function(*args, **kwargs)
        finally:
            end.record()
            spans.append((start, end))

    return call


def _timed(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - start

    return call


if __name__ == "__main__":
    main()
