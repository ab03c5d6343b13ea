"""Pictures of single cases: the image, its mask, and the maps of several runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use("Agg")  # no screen is needed

import numpy as np
import numpy.typing as npt
import torch
from hydra.utils import instantiate
from matplotlib import pyplot as plt

from datamodules.base import AnomalyDataModule
from datamodules.images import UInt8Array, load_image, load_mask
from datamodules.records import Record
from src.metrics.functional import auroc, exact_curve

CASES = 5
_SPREAD = (1, 99.9)


class Case(NamedTuple):
    """An anomalous image and how well the last run's map finds its defect: pixel AUROC of this image alone."""

    record: Record
    auroc: float


def draw_cases(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Draw the cases that the last run finds best and worst.

    Args:
        runs: folders of runs on the same data, made with `save_maps=true`.
        folder: where `best.png` and `worst.png` are written.

    Returns:
        The two files.
    """
    data = data_of(runs[-1])
    cases = sorted(_cases(runs[-1], data), key=lambda case: -case.auroc)
    chosen = {"best": cases[:CASES], "worst": cases[-CASES:]}
    return [_draw(rows, runs, folder / f"{name}.png") for name, rows in chosen.items()]


def data_of(run: Path) -> AnomalyDataModule:
    """The data module of a run, from its provenance."""
    node = json.loads((run / "provenance.json").read_text())["config"]["test_data"]
    # Files are drawn as they are, so that any size will do.
    data: AnomalyDataModule = instantiate(node, image_size=node["image_size"] or 240)
    data.setup("test")
    return data


def _cases(run: Path, data: AnomalyDataModule) -> list[Case]:
    cases = []
    for record in data.records:
        if record.mask_path is not None:
            anomaly_map = map_of(run, record)
            mask = resized(load_mask(record.mask_path), anomaly_map.shape)
            value = auroc(exact_curve(torch.from_numpy(anomaly_map[mask]), torch.from_numpy(anomaly_map[~mask])))
            if value is not None:
                cases.append(Case(record, value))
    return cases


def _draw(cases: Sequence[Case], runs: Sequence[Path], path: Path) -> Path:
    """A row a case. Colours are comparable down a column and between pictures: one range a run, over all its maps."""
    ranges = {run: np.percentile(np.stack([np.load(p) for p in run.glob("maps/*/*/*.npy")]), _SPREAD) for run in runs}
    columns = 2 + len(runs)
    figure, axes = plt.subplots(len(cases), columns, figsize=(2.2 * columns, 2.3 * len(cases)), squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        assert case.record.mask_path is not None
        row[0].imshow(load_image(case.record.image_path))
        row[0].set_title(f"{case.record.category}, {case.record.image_path.parent.name}", fontsize=9)
        row[1].imshow(load_mask(case.record.mask_path), cmap="gray")
        row[1].set_title("mask", fontsize=9)
        for axis, run in zip(row[2:], runs, strict=True):
            low, high = ranges[run]
            axis.imshow(map_of(run, case.record), cmap="inferno", vmin=low, vmax=high)
            axis.set_title(run.name, fontsize=9)
        row[-1].set_title(f"{runs[-1].name}: pixel AUROC {case.auroc:.2f}", fontsize=9)
        for axis in row:
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def map_of(run: Path, record: Record) -> npt.NDArray[np.float32]:
    """The saved map of an image: (H, W)."""
    image = record.image_path
    anomaly_map: npt.NDArray[np.float32] = np.load(
        run / "maps" / record.category / image.parent.name / f"{image.stem}.npy"
    )
    return anomaly_map


def resized(mask: UInt8Array, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """A mask at a map's size, nearest neighbour: (h, w) -> (H, W)."""
    rows, columns = (np.arange(n) * size // n for n, size in zip(shape, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)] > 0
