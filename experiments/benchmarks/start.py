"""What a command takes before it computes: to answer where there is nothing to compute, and to load a backbone.

`python -m experiments.benchmarks.start`
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import open_clip

from experiments.benchmarks.runs import ARCHITECTURE, save_random_weights
from experiments.benchmarks.timing import paired_medians, print_table, set_threads, write_results
from src.clip.backbone import Backbone, find_backbone

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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks"), help="weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    set_threads(options.threads)
    tables = {"start": start(options.rounds), "load": load(save_random_weights(options.work), options.rounds)}
    print_table("From the command line to the answer", tables["start"])
    print_table(f"A weights file of {ARCHITECTURE}", tables["load"])
    write_results("start", tables, rounds=options.rounds, threads=options.threads)


def start(rounds: int) -> list[dict[str, object]]:
    """Rows of commands and their times."""
    ways = {name: partial(answer, arguments) for name, arguments in ANSWERS.items()}
    paired_medians(ways, 1)
    return [{"command": name, "seconds": taken} for name, taken in paired_medians(ways, rounds).items()]


def load(weights: Path, rounds: int) -> list[dict[str, object]]:
    """Rows of open_clip alone and of `Backbone`, which makes open_clip leave out what is thrown away."""
    ways: dict[str, Callable[[], object]] = {
        "open_clip.create_model": partial(open_clip.create_model, ARCHITECTURE, pretrained=str(weights)),
        "Backbone": lambda: Backbone(find_backbone(ARCHITECTURE, str(weights))),
    }
    return [{"loaded by": name, "seconds": taken} for name, taken in paired_medians(ways, rounds).items()]


if __name__ == "__main__":
    main()
