"""What a dashboard shows of a run, from the same description as the page: values, curves, and the ranked images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import cv2
import numpy as np

from src.report.cases import RANKINGS
from src.report.description import Description, ShownCase
from src.report.pictures import UInt8Array, blended, decoded, resized
from src.run.results import Metrics

MOST_POINTS = 100  # of a curve in a dashboard, which cuts longer tables in its own way

CHARTS = {
    "ROC": ("fpr", "recall"),
    "precision-recall": ("recall", "precision"),
    "PRO": ("fpr", "pro"),
}
"""Chart -> the names of x and y among a curve's points."""


class CasePicture(NamedTuple):
    """A ranked image, ready to be shown.

    Attributes:
        image: (h, w, 3) uint8 RGB, in the aspect of the file.
        heat_map: the same with the coloured map over it.
        truth: (h, w) uint8 {0, 1}; None where there is no mask.
        predicted: (h, w) uint8 {0, 1}: where the map is at or above the threshold of the best pixel F1; None without.
        caption: why it is shown, scores, decision and defect.
    """

    image: UInt8Array
    heat_map: UInt8Array
    truth: UInt8Array | None
    predicted: UInt8Array | None
    caption: str


def scalars(metrics: Metrics) -> dict[str, float]:
    """Every figure of a test by name: `test/pixel_AP` of the means, `test/bottle/pixel_AP` of a category.

    Example:
        >>> scalars({"mean": {"image_AP": 0.5}, "categories": {"cup": {"image_AP": 0.5, "vanished_masks": 0}}})
        {'test/image_AP': 0.5, 'test/cup/image_AP': 0.5, 'test/cup/vanished_masks': 0}
    """
    means = {f"test/{name}": value for name, value in metrics["mean"].items()}
    return means | {
        f"test/{category}/{name}": value
        for category, values in metrics["categories"].items()
        for name, value in values.items()
    }


def charts(description: Description) -> dict[str, list[tuple[float, float, str]]]:
    """The curves of all categories together, a chart a level and kind: name -> rows of x, y and category."""
    rows: dict[str, list[tuple[float, float, str]]] = {}
    for category, levels in description.curves.items():
        for level, points in levels.items():
            columns: Mapping[str, list[float]] = points  # type: ignore[assignment]
            for chart, (x, y) in CHARTS.items():
                if y in columns:
                    pairs = list(zip(columns[x], columns[y], strict=True))
                    chosen = np.unique(np.linspace(0, len(pairs) - 1, MOST_POINTS).round().astype(int))
                    rows.setdefault(f"{level} {chart}", []).extend((*pairs[i], category) for i in chosen)
    return rows


def ranked_cases(description: Description, category: str, count: int) -> list[ShownCase]:
    """The cases of a category to show first: the first of each ranking, then the second of each, and so on."""
    own = [case for case in description.cases if case["category"] == category and case["ranks"]]

    def place(case: ShownCase) -> tuple[int, int]:
        return min((place, RANKINGS.index(name)) for name, place in case["ranks"].items())

    return sorted(own, key=place)[:count]


def case_pictures(description: Description, category: str, count: int, size: int = 256) -> Iterator[CasePicture]:
    """The ranked cases of a category as pictures, one after the other.

    Args:
        description: of a run.
        category: one of its categories.
        count: at most so many.
        size: of the longer side, in pixels.
    """
    card = description.cards[category]
    for case in ranked_cases(description, category, count):
        pictures = description.pictures_of(case)
        if pictures is None:
            continue
        scale = size / max(case["width"], case["height"])
        shape = (max(round(case["width"] * scale), 1), max(round(case["height"] * scale), 1))
        image = resized(decoded(pictures.image), shape)
        anomaly_map = resized(description.map_of(case), shape)
        threshold = card["thresholds"].get("pixel")
        yield CasePicture(
            image,
            blended(image, anomaly_map, card["low"], card["high"]),
            filled(pictures.outline, shape) if case["mask_share"] is not None else None,
            (anomaly_map >= threshold).astype(np.uint8) if threshold is not None else None,
            caption_of(case, card["thresholds"].get("single")),
        )


def filled(outline: str, shape: tuple[int, int]) -> UInt8Array:
    """Fill an outline again: (height, width) {0, 1} for a shape of width and height.

    Example:
        >>> filled("M0 500L0 1000L1000 1000L1000 500Z", (2, 4)).tolist()
        [[0, 0], [0, 0], [1, 1], [1, 1]]
    """
    width, height = shape
    mask = np.zeros((height, width), np.uint8)
    fine = 16  # cv2 takes the corners of pixels for their middles; on a finer grid it makes no difference
    parts = []
    for part in re.findall(r"M([^Z]*)Z", outline):
        corners = np.array([[float(value) for value in point.split()] for point in part.split("L")])
        parts.append(np.rint(corners / 1000 * (width * fine, height * fine) - 0.5).astype(np.int32))
    if parts:
        large = np.zeros((height * fine, width * fine), np.uint8)
        cv2.fillPoly(large, parts, 1)  # where parts overlap, it is a hole
        mask = (cv2.resize(255 * large, shape, interpolation=cv2.INTER_AREA) > 127).astype(np.uint8)
    return mask


def caption_of(case: ShownCase, threshold: float | None) -> str:
    """Why an image is shown, its score, what is decided by it, and what is wrong with it.

    Example:
        >>> case = {"image_path": "cup/test/crack/0.png", "label": 1, "single_score": 0.25, "pixel_ap": None}
        >>> caption_of({**case, "ranks": {"worst miss": 1}}, threshold=0.5)
        'worst miss 1: score 0.25, normal by threshold 0.5; truth: crack'
    """
    first = sorted(case["ranks"].items(), key=lambda ranking: ranking[1])[:2]
    ranks = ", ".join(f"{name} {place}" for name, place in first)
    line = f"{ranks}: score {case['single_score']:.4g}"
    if threshold is not None:
        decision = "anomalous" if case["single_score"] >= threshold else "normal"
        line += f", {decision} by threshold {threshold:.4g}"
    if case["label"] is not None:
        folder = case["image_path"].rpartition("/")[0].rpartition("/")[2] or "anomalous"
        line += f"; truth: {folder if case['label'] else 'normal'}"
    if case["pixel_ap"] is not None:
        line += f"; pixel AP {case['pixel_ap']:.2f}"
    return line
