"""Whole commands as benchmarks: the published backbone's architecture, on excerpts of the real data sets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from pathlib import Path
from typing import NamedTuple

import torch

from src.clip.backbone import Backbone, find_backbone

ROOT = Path(__file__).parents[2]
ARCHITECTURE = "ViT-B-16-plus-240"


class Timed(NamedTuple):
    """Seconds of a command, and of these the ones after its first line: without start and loading of weights."""

    whole: float
    work: float


def accelerator(name: str) -> str:
    """The type of an option `--accelerator`: `cpu`, or `gpu` where there is one."""
    if name not in ("cpu", "gpu"):
        raise ArgumentTypeError(f"expected cpu or gpu, but got {name}")
    if name == "gpu" and not torch.cuda.is_available():
        raise ArgumentTypeError("expected a GPU, but torch finds none; take cpu")
    return name


def save_random_weights(folder: Path, name: str = ARCHITECTURE) -> Path:
    """A weights file for an architecture: what is computed with it means nothing, but takes as long."""
    path = folder / f"random-{name}.pt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        torch.save(Backbone(find_backbone(name, None)).clip.state_dict(), path)
    return path


def common_options(data: Path, weights: Path, threads: int, accelerator: str = "cpu") -> list[str]:
    """Overrides of all timed commands; the weights are those of `save_random_weights`."""
    return [
        f"paths.data_dir={data.resolve()}",
        f"backbone.name={weights.stem.removeprefix('random-')}",
        f"backbone.pretrained={weights.resolve()}",
        f"trainer.accelerator={accelerator}",
        "~callbacks.progress",
        "+trainer.enable_progress_bar=false",
        f"test_data.num_workers={threads}",
    ]


def time_command(threads: int, *arguments: str) -> Timed:
    """Run `python -m ...` and take its time."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first_line = time.perf_counter()
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    end = time.perf_counter()
    return Timed(end - start, end - first_line)
