"""SDP+ with and without the feature cache: one run, and a sweep of ten.

`python -m experiments.benchmarks.feature_cache [--sweep] --data ../shared/data` trains on the VisA and tests on the
MVTec AD that is there; the sweep on a category of each. Few prompts, since the text tower is not what is measured. With
n images to train on and m to test on, a cold cache can save (5 n + m) / (n + m) at most.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from experiments.benchmarks.runs import Timed, common_options, save_random_weights, time_command
from experiments.benchmarks.timing import print_table, write_results

WITHOUT, COLD, WARM = "without", "cold", "warm"
ONE_CATEGORY = ["train_data.categories=[capsules]", "test_data.categories=[bottle]"]
SWEEP = ["optimizer.lr=1e-5,3e-5,1e-4,3e-4,1e-3", "trainer.max_epochs=3,5"]
ONE_RUN, TEN_TRIALS = "5 epochs and test", "sweep of 10 trials"


def main() -> None:
    """Take the times, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mvtec and visa")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks"), help="weights, caches and results")
    parser.add_argument("--sweep", action="store_true", help="measure the sweep, which takes half an hour a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    fixed = common_options(options.data, save_random_weights(options.work), options.threads)
    fixed += [f"train_data.num_workers={options.threads}", "prompts.templates=['a photo of a {}.']"]
    fixed += ["+exp=sdp_plus_mvtec", "model.representative=mean"]
    if options.sweep:
        name, rows = "feature_cache_sweep", compare(TEN_TRIALS, options, ["-m", *fixed, *ONE_CATEGORY, *SWEEP])
    else:
        name, rows = "feature_cache", compare(ONE_RUN, options, fixed)
    print_table("SDP+, training and test", rows)
    write_results(name, {"runs": rows}, rounds=options.rounds, threads=options.threads)


def compare(what: str, options: argparse.Namespace, arguments: Sequence[str]) -> list[dict[str, object]]:
    """Rows of a command without the cache, with an empty one and with a full one; in turn, A B C A B C.

    Raises:
        RuntimeError: the cache has changed a metric.
    """
    taken: dict[str, list[Timed]] = {WITHOUT: [], COLD: [], WARM: []}
    output, cache = options.work / "output", options.work / "cache"
    for _ in range(options.rounds):
        metrics = {}
        for way, times in taken.items():
            shutil.rmtree(output, ignore_errors=True)
            if way == COLD:
                shutil.rmtree(cache, ignore_errors=True)
            places = [f"paths.output_dir={output.resolve()}", f"paths.cache_dir={cache.resolve()}"]
            enabled = f"feature_cache.enabled={'false' if way == WITHOUT else 'auto'}"
            times.append(time_command(options.threads, "src.train", *arguments, *places, enabled))
            metrics[way] = [path.read_bytes() for path in sorted(output.rglob("metrics.json"))]
        if not metrics[WITHOUT] == metrics[COLD] == metrics[WARM]:
            raise RuntimeError("the metrics are not the same with and without the cache")
    plain, plain_work = median(t.whole for t in taken[WITHOUT]), median(t.work for t in taken[WITHOUT])
    return [
        {
            "what": what,
            "cache": way,
            "command (s)": round(median(t.whole for t in times), 1),
            "x faster": round(plain / median(t.whole for t in times), 1),
            "after the first line (s)": round(median(t.work for t in times), 1),
            "x faster after it": round(plain_work / median(t.work for t in times), 1),
        }
        for way, times in taken.items()
    ]


if __name__ == "__main__":
    main()
