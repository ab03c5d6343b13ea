"""How time and memory of the pixel metrics of one category grow with its number of images.

`python -m experiments.benchmarks.pixel_scale [--images 10 30 100 300 1000] [--side 240] [--rounds 3]`. Every size runs
in a process of its own, which draws its maps as they are needed and holds one batch of them, so that the process's peak
is that of the metrics.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks.drawn_maps import DrawnCategory, draw_category
from experiments.benchmarks.timing import keep_memory, print_table, set_threads, write_results
from src.metrics import PixelMetrics

BATCH = 8
DISTINCT = 24  # images that are drawn; all others are made from these by a shift and a little noise
CLEAR_PEAK = Path("/proc/self/clear_refs")  # 5 sets VmHWM, the peak, to what is held now
VARIANTS = {"exact": None, "histogram": 0}


class Measurement(NamedTuple):
    """Seconds of all updates and of compute, and bytes at the peak, beyond what the process held before."""

    update: float
    compute: float
    peak: int


def batches(category: DrawnCategory, num_images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps and masks (B, S, S)."""
    rng, side = np.random.default_rng(num_images), category.maps.shape[-1]
    for start in range(0, num_images, BATCH):
        picked = rng.integers(DISTINCT, size=min(BATCH, num_images - start))
        moved = int(rng.integers(side))
        noise = rng.standard_normal((len(picked), side, side), dtype=np.float32)
        maps = np.roll(category.maps[picked], moved, axis=2) + np.float32(0.01) * noise
        yield torch.from_numpy(maps), torch.from_numpy(np.roll(category.masks[picked], moved, axis=2))


def measure(num_images: int, side: int, max_pixels: int | None, threads: int) -> Measurement:
    """Evaluate a category of drawn maps for the peak, then for the time; meant for a fresh process."""
    set_threads(threads)
    category = draw_category(DISTINCT, side)
    evaluate(category, BATCH, max_pixels)
    CLEAR_PEAK.write_text("5")
    before = _status("VmRSS")
    evaluate(category, num_images, max_pixels)
    peak = _status("VmHWM") - before
    keep_memory()
    evaluate(category, num_images, max_pixels)  # fetches the memory
    return Measurement(*evaluate(category, num_images, max_pixels), peak)


def evaluate(category: DrawnCategory, num_images: int, max_pixels: int | None) -> tuple[float, float]:
    """Seconds of all updates and of compute."""
    metrics, updating = PixelMetrics(max_pixels), 0.0
    for maps, masks in batches(category, num_images):
        start = time.perf_counter()
        metrics.update(maps, masks)
        updating += time.perf_counter() - start
    start = time.perf_counter()
    metrics.compute()
    return updating, time.perf_counter() - start


def _status(key: str) -> int:
    """A line of Linux's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def rows_of(images: list[int], side: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Medians per size and variant; the sizes take turns, so that a slow minute hits them all."""
    taken: dict[tuple[int, str], list[Measurement]] = {(n, variant): [] for n in images for variant in VARIANTS}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(rounds):
            for (n, variant), measurements in taken.items():
                measurements.append(pool.apply(measure, (n, side, VARIANTS[variant], threads)))
    rows: list[dict[str, Any]] = []
    first: dict[str, float] = {}
    for (n, variant), measurements in taken.items():
        pixels = n * side**2
        update, compute, peak = (statistics.median(column) for column in zip(*measurements, strict=True))
        nanoseconds = 1e9 * (update + compute) / pixels
        per_log = nanoseconds / math.log2(pixels)
        rows.append(
            {
                "variant": variant,
                "images": n,
                "pixels (10^6)": pixels / 1e6,
                "update (s)": update,
                "compute (s)": compute,
                "ns a pixel": nanoseconds,
                "of n log n": per_log / first.setdefault(variant, per_log),
                "peak (MB)": peak / 1e6,
                "bytes a pixel": peak / pixels,
            }
        )
    return rows


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--side", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rows = rows_of(arguments.images, arguments.side, arguments.rounds, arguments.threads)
    title = f"one category of {arguments.side} x {arguments.side} maps"
    print_table(title, rows)
    print("\nof n log n: cost a pixel over log n, against the smallest size's; 1 or less grows no faster than n log n")
    write_results("pixel_scale", {title: rows}, rounds=arguments.rounds, threads=arguments.threads)


if __name__ == "__main__":
    main()
