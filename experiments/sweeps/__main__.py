"""Run two sweeps of the demo and write their tables to results.md beside this file.

`python -m experiments.sweeps [overrides]`, from the repository root, with the extra `sweeps`. The overrides are added
to every command. Runs go to outputs/sweeps/<time>.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from src.files import write_text
from src.sweeps.collect import collect
from src.sweeps.trial import Trial, read_trials

OUTPUT = Path("outputs/sweeps")
RESULTS = Path(__file__).with_name("results.md")
TRAIN = ["src.train", "-m", "+exp=sdp_plus_demo"]
SEARCH = ["+sweep=optuna", "val_categories=[tile,capsule]", "hydra.sweeper.n_trials=6"]
WEIGHTS = "sdp_plus.trained_on_demo.safetensors"


def main(overrides: Sequence[str], output: Path, results: Path) -> None:
    """Run the seeds, the search, and the best trial of the search once on the benchmark."""
    seeds, search, best = (output / name for name in ("seeds", "search", "best"))
    parts = [_section("Five seeds", [*TRAIN, "+sweep=seeds", *overrides], seeds)]
    parts += [_section("A search on held-out categories", [*TRAIN, *SEARCH, *overrides], search)]
    weights = search / str(best_of(search).number) / WEIGHTS
    test = ["src.eval", "-m", "+exp=sdp_plus_demo", f"ckpt_path={weights}", *overrides]
    parts += [_section("The search's best, on the benchmark", test, best)]
    write_text(results, "\n".join(["# Results", "", "Written by `python -m experiments.sweeps`.", "", *parts]))
    print(f"tables in {results}")


def best_of(sweep: Path) -> Trial:
    """The trial with the highest objective."""
    return max((t for t in read_trials(sweep) if t.objective is not None), key=lambda t: t.objective or 0.0)


def _section(title: str, command: Sequence[str], folder: Path) -> str:
    """Run a sweep, and describe it with its table."""
    full = ["-m", *command, f"paths.output_dir={folder}"]
    print(f"\n$ python {shlex.join(full)}", flush=True)
    subprocess.run([sys.executable, *full], check=True)
    return "\n".join([f"## {title}", "", "```", f"python {shlex.join(full)}", "```", "", collect(folder)])


if __name__ == "__main__":
    try:
        main(sys.argv[1:], OUTPUT / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), RESULTS)
    except subprocess.CalledProcessError as failed:
        sys.exit(failed.returncode)  # the command has said why
