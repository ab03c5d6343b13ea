"""How long a command takes to answer when there is nothing to compute: `python -m experiments.benchmarks.start`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

from experiments.benchmarks.timing import paired_medians, print_table, write_results

ROOT = Path(__file__).parents[2]
ANSWERS = {
    "python -c pass": ["-c", "pass"],
    "src.train --help": ["-m", "src.train", "--help"],
    "src.train --hydra-help": ["-m", "src.train", "--hydra-help"],
    "src.train +exp=sdp_mvtec --cfg job": ["-m", "src.train", "+exp=sdp_mvtec", "--cfg", "job"],
    "src.train, unknown key": ["-m", "src.train", "seeed=3"],
    "src.train, unknown experiment": ["-m", "src.train", "+exp=sdp_mvtek"],
    "src.train, value of the wrong type": ["-m", "src.train", "seed=many"],
}


def answer(arguments: list[str]) -> None:
    """Run a command to its end."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    ways = {name: partial(answer, arguments) for name, arguments in ANSWERS.items()}
    paired_medians(ways, 1)
    rows = [{"command": name, "seconds": taken} for name, taken in paired_medians(ways, rounds).items()]
    print_table("From the command line to the answer", rows)
    write_results("start", {"start": rows}, rounds=rounds)


if __name__ == "__main__":
    main()
