"""What a review in W&B costs beside a run that only writes files: the demo's evaluation, without a network.

`python -m experiments.benchmarks.review --rounds 5`. The demo data is drawn and its sentences are encoded before the
first round. An empty run is `import wandb`, `wandb.init`, one logged value and `finish`, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from experiments.benchmarks.runs import ROOT
from experiments.benchmarks.timing import print_table, write_results

EMPTY = """
import wandb
run = wandb.init(mode="offline", settings=wandb.Settings(silent=True))
run.log({"a": 1})
run.finish()
"""
OFFLINE = ["logger=wandb", "logger.wandb.offline=true"]
WAYS = {"logger=csv": ["logger=csv"], "logger=wandb, offline": OFFLINE}


def main() -> None:
    """Take the times, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks"), help="data, caches and results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    work = options.work.resolve()
    common = ["src.eval", "+exp=sdp_demo", "test_data.categories=[coin,nut]", f"paths.data_dir={work / 'data'}"]
    common += [f"paths.cache_dir={work / 'cache'}", f"paths.output_dir={work / 'review'}"]
    commands = {way: ["-m", *common, *own] for way, own in WAYS.items()}
    commands |= {"an empty run of W&B, offline": ["-c", EMPTY]}
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in commands}
    for number in range(options.rounds + 1):
        for way, command in commands.items():
            seconds = seconds_of(command, work / "review", options.threads)
            if number:  # the first round draws the data
                taken[way].append(seconds)
    plain, reviewed, empty = taken.values()
    rows = [
        {
            "what": way,
            "seconds": median(wall for wall, _ in times),
            "of processor time": median(cpu for _, cpu in times),
        }
        for way, times in taken.items()
    ]
    pairs = [[b - a - c for a, b, c in zip(*run, strict=True)] for run in zip(plain, reviewed, empty, strict=True)]
    wall, processor = (median(differences) for differences in zip(*pairs, strict=True))
    rows.append({"what": "the review beside an empty run", "seconds": wall, "of processor time": processor})
    print_table("An evaluation of 96 images of the demo", rows)
    write_results("review", {"runs": rows, "pairs": pairs}, rounds=options.rounds, threads=options.threads)


def seconds_of(command: list[str], folder: Path, threads: int) -> tuple[float, float]:
    """Run Python with these arguments. Returns seconds of the clock, and of the processor without W&B's own process."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    end, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return end - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
