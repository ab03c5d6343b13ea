"""One evaluation by one and by two processes, each with one thread: `python -m experiments.benchmarks.processes`.

576 images of the demo, with the published backbone's architecture. The time from the command line on
includes what each process does for itself: imports, weights and the check of the data.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import median

from experiments.benchmarks.runs import Timed, common_options, save_random_weights, time_command
from experiments.benchmarks.timing import print_table, write_results

WAYS = {
    "one process": ["trainer=default"],
    "two processes": ["trainer=ddp", "trainer.devices=2"],
}


def main() -> None:
    """Take the times, print the table and write it.

    Raises:
        RuntimeError: two processes gave other metrics than one.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder for the demo's images")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks"), help="weights, caches and results")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    fixed = common_options(options.data, save_random_weights(options.work), threads=0)
    fixed += ["data@test_data=demo", "prompts.templates=['a photo of a {}.']", "model.representative=mean"]
    fixed += [f"paths.cache_dir={(options.work / 'cache').resolve()}"]
    taken: dict[str, list[Timed]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        metrics = set()
        for way, times in taken.items():
            output = options.work / "output"
            shutil.rmtree(output, ignore_errors=True)
            times.append(time_command(1, "src.eval", *fixed, *WAYS[way], f"paths.output_dir={output.resolve()}"))
            metrics.add((output / "metrics.json").read_bytes())
        if len(metrics) != 1:
            raise RuntimeError("two processes gave other metrics than one")
    alone = median(time.whole for time in taken["one process"])
    rows = [
        {
            "way": way,
            "seconds": round(median(time.whole for time in times), 1),
            "times faster": round(alone / median(time.whole for time in times), 2),
        }
        for way, times in taken.items()
    ]
    print_table("SDP on 576 images, one thread a process", rows)
    write_results("processes", {"processes": rows}, rounds=options.rounds)


if __name__ == "__main__":
    main()
