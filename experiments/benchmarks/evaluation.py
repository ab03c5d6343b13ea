"""Where the time of `python -m src.eval +exp=sdp_mvtec` goes.

`python -m experiments.benchmarks.evaluation --data ../shared/data`
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

from experiments.benchmarks.runs import common_options, save_random_weights, time_command
from experiments.benchmarks.timing import print_table, write_results

# What is timed, in the order of the table; `test` holds all the others.
TEST, TEXT, TOWER, MAPS, UPDATE, METRICS = "test", "sentences", "tower", "maps", "masks to metrics", "metrics"


def main() -> None:
    """Run the evaluation some times, print the shares of its wall time and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mvtec")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks"), help="weights and cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", type=Path, help=argparse.SUPPRESS)  # of the process that is timed
    options, overrides = parser.parse_known_args()
    if options.profile:
        profile(options.profile, overrides)
        return
    fixed = common_options(options.data, save_random_weights(options.work), options.threads)
    rounds = [run(options, ["+exp=sdp_mvtec", *fixed, *overrides]) for _ in range(options.rounds)]
    rows = shares({name: median(seconds[name] for seconds in rounds) for name in rounds[0]})
    print_table("sdp_mvtec", rows)
    write_results("evaluation", {"wall time": rows}, rounds=options.rounds, threads=options.threads)


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
    for name, owner, method in (
        (TEST, Trainer, "test"),
        (TEXT, PromptEnsemble, "prepare"),
        (TOWER, DualPath, "forward"),
        (MAPS, SDP, "score"),
        (UPDATE, AnomalyModule, "_update"),
        (METRICS, BenchmarkMetrics, "compute"),
    ):
        setattr(owner, method, _timed(getattr(owner, method), seconds, name))
    sys.argv = ["src/eval.py", *overrides]
    main()
    target.write_text(json.dumps(seconds))


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
