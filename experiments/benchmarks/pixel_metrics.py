"""How long the four pixel metrics of a category take, against the usual ways.

`python -m experiments.benchmarks.pixel_metrics [--rounds 3] [--threads 2] [--skip-thresholds]`. adeval, the fastest
AUPRO on PyPI, takes part if it can be imported: put it into a folder of its own and that on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.drawn_maps import DrawnCategory, draw_category
from experiments.benchmarks.plain_metrics import argsort_aupro, scikit_learn_three, threshold_aupro
from experiments.benchmarks.timing import keep_memory, paired_medians, print_table, set_threads, write_results
from src.metrics import PixelMetrics

CASES = ((160, 240), (80, 518))  # images, side
BATCH = 8
METRICS = ("AUROC", "AP", "F1Max", "AUPRO")
OURS = "this project, all four, exact"


def ours(category: DrawnCategory, max_pixels: int | None = None) -> dict[str, float]:
    """All four metrics, from batches as they come."""
    metrics = PixelMetrics(max_pixels)
    maps, masks = torch.from_numpy(category.maps), torch.from_numpy(category.masks)
    for start in range(0, len(maps), BATCH):
        metrics.update(maps[start : start + BATCH], masks[start : start + BATCH])
    return {name.removeprefix("pixel_"): value for name, value in metrics.compute().items()}


def adeval_three(category: DrawnCategory) -> dict[str, float]:
    """AUROC, AP and AUPRO by adeval, from 1000 linear bins."""
    vars(np).setdefault("trapz", getattr(np, "trapezoid", None))  # adeval 1.1 was written for numpy 1
    import adeval

    return dict(zip(("AUROC", "AP", "AUPRO"), adeval.auroc_aupr_aupro(category.maps, category.masks), strict=True))


def ways_of(category: DrawnCategory, *, with_thresholds: bool) -> dict[str, Callable[[], dict[str, float]]]:
    """The competitors by name."""
    maps, masks = category.maps, category.masks
    ways = {
        OURS: lambda: ours(category),
        "this project, histogram": lambda: ours(category, max_pixels=0),
        "scikit-learn, without AUPRO": lambda: scikit_learn_three(maps, masks),
        "exact AUPRO by full argsort": lambda: {"AUPRO": argsort_aupro(maps, masks)},
    }
    if importlib.util.find_spec("adeval"):
        ways["adeval, without F1-max"] = lambda: adeval_three(category)
    if with_thresholds:
        ways["AUPRO of 200 thresholds"] = lambda: {"AUPRO": threshold_aupro(maps, masks)}
    return ways


def rows_of(category: DrawnCategory, rounds: int, *, with_thresholds: bool) -> list[dict[str, Any]]:
    """Time every way and compare what it gives."""
    values: dict[str, dict[str, float]] = {}

    def keeping(name: str, way: Callable[[], dict[str, float]]) -> Callable[[], None]:
        return lambda: values.update({name: way()})

    ways = ways_of(category, with_thresholds=with_thresholds)
    seconds = paired_medians({name: keeping(name, way) for name, way in ways.items()}, rounds)
    sums = {"scikit-learn + argsort": ("scikit-learn, without AUPRO", "exact AUPRO by full argsort")}
    if with_thresholds:
        sums["scikit-learn + 200 thresholds"] = ("scikit-learn, without AUPRO", "AUPRO of 200 thresholds")
    for name, parts in sums.items():
        seconds[name] = sum(seconds[part] for part in parts)
        values[name] = {key: value for part in parts for key, value in values[part].items()}
    return [
        {
            "way": name,
            "seconds": taken,
            "times ours": taken / seconds[OURS],
            **{metric: values[name].get(metric) for metric in METRICS},
            "largest difference": max(
                abs(values[name][metric] - values[OURS][metric]) for metric in METRICS if metric in values[name]
            ),
        }
        for name, taken in seconds.items()
    ]


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--skip-thresholds", action="store_true", help="leave out the 200 thresholds: they take minutes"
    )
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    keep_memory()
    tables = {}
    for num_images, side in CASES:
        category = draw_category(num_images, side)
        title = (
            f"{num_images} images, {side} x {side}, {category.num_components} regions, "
            f"{category.masks.mean():.1%} anomalous pixels"
        )
        tables[title] = rows_of(category, arguments.rounds, with_thresholds=not arguments.skip_thresholds)
        print_table(title, tables[title])
    write_results("pixel_metrics", tables, rounds=arguments.rounds, threads=arguments.threads)


if __name__ == "__main__":
    main()
