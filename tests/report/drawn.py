# S = size of a drawn image
"""A description of a run that never was: drawn images, and scores that overlap a little."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from PIL import Image

from src.metric_names import CurvePoints
from src.report.description import Card, Description, Histogram, Pictures, ShownCase

EVIL = """</script><script>alert("1")</script> & 'bolt' <!-- \u2028 🔩"""
PALETTE = ["rgb(48 18 59 / 0.00)", "rgb(40 187 236 / 0.40)", "rgb(164 252 60 / 0.90)", "rgb(122 4 3 / 1.00)"]


@dataclass(frozen=True)
class Drawn(Description):
    """A description whose pictures are in memory."""

    drawn: dict[str, list[tuple[int, Pictures]]] = field(default_factory=dict)

    def pictures(self, category: str) -> Iterator[tuple[int, Pictures]]:
        return iter(self.drawn[category])


def drawn_run(
    sizes: dict[str, tuple[int, int]] | None = None,
    *,
    labels: bool = True,
    masks: bool = True,
    marks: bool = False,
    size: int = 32,
    **changes: Any,
) -> Drawn:
    """Draw a run.

    Args:
        sizes: category -> its normal images, its anomalous images.
        labels: whether it is known which are anomalous; without there are neither curves nor thresholds.
        masks: whether there are masks.
        marks: whether a threshold of the maps marks something.
        size: of the pictures, in pixels.
        changes: other values of the description.
    """
    rng = np.random.default_rng(0)
    sizes = {"nut": (9, 12), "10": (6, 0), EVIL: (5, 4)} if sizes is None else sizes
    cases: list[ShownCase] = []
    run: dict[str, Any] = {name: {} for name in ("cards", "curves", "histograms", "drawn")}
    categories: dict[str, dict[str, float]] = {}
    for category, (normal, anomalous) in sizes.items():
        is_anomalous = np.arange(normal + anomalous) < anomalous
        single = 0.97 + 0.006 * rng.random(len(is_anomalous)) + 0.004 * is_anomalous
        own = [
            _case(len(cases) + i, category, bool(is_anomalous[i]), float(single[i])) for i in range(len(is_anomalous))
        ]
        _fuse(own)
        cases += own
        run["drawn"][category] = [(case["id"], _pictures(rng, case, size)) for case in own]
        run["curves"][category] = _curves(own, rng) if normal and anomalous and labels else {}
        run["histograms"][category] = _histogram(own, labels)
        run["cards"][category] = _card(own, run["curves"][category], labels, masks)
        if anomalous and normal:
            categories[category] = {name: float(rng.random()) for name in ("image_AUROC", "image_AP", "image_F1Max")}
            categories[category] |= {name: float(rng.random()) for name in ("pixel_AUROC", "pixel_AP", "pixel_AUPRO")}
            categories[category] |= {"single_AUROC": float(rng.random()), "image_F1Max_threshold": 0.1 + rng.random()}
        else:
            categories[category] = {}
        categories[category]["my_seconds"] = 1000 * float(rng.random())
        _rank(own)
    names = {name for metrics in categories.values() for name in metrics if not name.startswith("single_")}
    names -= {"image_F1Max_threshold"}
    means = {name: float(np.mean([m[name] for m in categories.values() if name in m])) for name in sorted(names)}
    run["curves"] = {category: levels for category, levels in run["curves"].items() if levels}
    if not masks:
        for levels in run["curves"].values():
            del levels["pixel"]
    if not masks or not labels:
        for case in cases:
            case["pixel_ap"] = case["mask_share"] = None
        run["drawn"] = {
            category: [(i, pictures._replace(outline="")) for i, pictures in drawn]
            for category, drawn in run["drawn"].items()
        }
    if marks:  # the lower right part of each, whatever the truth
        run["drawn"] = {
            category: [(i, pictures._replace(marked="M500 500L500 900L900 900L900 500Z")) for i, pictures in drawn]
            for category, drawn in run["drawn"].items()
        }
    if not labels:
        for case in cases:
            case["label"], case["image_score"], case["ranks"] = None, None, {}
    run |= {
        "title": "no training (frozen CLIP) -> test drawn nuts (36 images)",
        "kind": "eval" if labels else "predict",
        "command": "python -m src.eval +exp=sdp_demo",
        "reproduce": "python -m src.reproduce 'outputs/run <1>'" if labels else None,
        "facts": [("commit", "0123abc"), ("<b>device</b>", "cpu & more")],
        "metrics": {"mean": means, "categories": categories} if labels else None,
        "notes": ["1 mask vanishes at the evaluation size"] if labels and masks else [],
        "fusion": "min_max_sum" if labels else None,
        "cases": cases,
        "hidden": 0,
        "palette": PALETTE,
        "has_marks": marks,
        "has_decisions": False,
    }
    sources = {field.name: None for field in fields(Description) if field.name.startswith("_")}
    return Drawn(**(run | sources | changes))


def _case(number: int, category: str, anomalous: bool, score: float) -> ShownCase:
    defect = "bad <i>" if anomalous else "good"
    return ShownCase(
        id=number,
        category=category,
        image_path=f"{category}/test/{defect}/{number:03}.png",
        label=int(anomalous),
        single_score=score,
        image_score=None,
        terms={"cls_score": score - 0.02, "map_max": 0.02},
        pixel_ap=1 / (1 + number) if anomalous else None,
        mask_share=0.05 if anomalous else 0.0,
        width=320,
        height=240,
        ranks={},
    )


def _fuse(cases: Sequence[ShownCase]) -> None:
    scores = [case["single_score"] for case in cases]
    for case in cases:
        case["image_score"] = (case["single_score"] - min(scores)) / (max(scores) - min(scores))


def _pictures(rng: np.random.Generator, case: ShownCase, size: int) -> Pictures:
    y, x = np.mgrid[:size, :size] / size
    image = np.stack([180 - 60 * y, 170 - 40 * x, 160 + 0 * x], -1) + rng.normal(0, 4, (size, size, 3))
    image[(x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1] = (90, 95, 105)
    left, top = rng.uniform(0.25, 0.6, 2)
    if case["label"]:
        image[(x > left) & (x < left + 0.15) & (y > top) & (y < top + 0.15)] = (60, 30, 20)
    content = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(content, "jpeg", quality=80)
    heat = np.exp(-((x - left - 0.07) ** 2 + (y - top - 0.07) ** 2) / 0.02) * (1.0 if case["label"] else 0.4)
    picture = Image.fromarray((255 * heat).astype(np.uint8), "L").convert("P")
    share = np.linspace(0, 1, 256)
    colours = np.stack([share, 1 - abs(2 * share - 1), 1 - share], -1)
    picture.putpalette(np.rint(255 * colours).astype(np.uint8).tobytes())
    map_content = io.BytesIO()
    picture.save(map_content, "png", transparency=np.rint(255 * share**0.7).astype(np.uint8).tobytes())
    corners = [(left, top), (left + 0.15, top), (left + 0.15, top + 0.15), (left, top + 0.15)]
    path = "M" + "L".join(f"{1000 * a:.0f} {1000 * b:.0f}" for a, b in corners) + "Z"
    return Pictures(content.getvalue(), map_content.getvalue(), path if case["label"] else "")


def curve_of(scores: Sequence[float], labels: Sequence[int]) -> CurvePoints:
    """Every point of a curve, by counting at each threshold."""
    values, truth = np.array(scores), np.array(labels, bool)
    points: list[tuple[float, float, float, float]] = []
    for threshold in sorted(set(scores), reverse=True):
        decided = values >= threshold
        hits, alarms = int((decided & truth).sum()), int((decided & ~truth).sum())
        points.append((threshold, alarms / int((~truth).sum()), hits / int(truth.sum()), hits / (hits + alarms)))
    threshold, fpr, recall, precision = (list(column) for column in zip(*points, strict=True))
    return CurvePoints(threshold=threshold, fpr=fpr, recall=recall, precision=precision)


def _curves(cases: Sequence[ShownCase], rng: np.random.Generator) -> dict[str, CurvePoints]:
    labels = [int(case["label"] or 0) for case in cases]
    single = curve_of([case["single_score"] for case in cases], labels)
    fused = curve_of([float(case["image_score"] or 0) for case in cases], labels)
    truth = (rng.random(400) < 0.2).astype(int)
    pixel = curve_of((0.012 + 0.004 * (rng.random(400) + truth)).tolist(), truth.tolist())
    pixel["pro"] = [recall**1.5 for recall in pixel["recall"]]
    return {"image": fused, "single": single, "pixel": pixel}


def best_threshold(points: CurvePoints) -> float:
    """Of the highest F1."""
    f1 = [2 * p * r / max(p + r, 1e-12) for p, r in zip(points["precision"], points["recall"], strict=True)]
    return points["threshold"][int(np.argmax(f1))]


def _histogram(cases: Sequence[ShownCase], labels: bool) -> Histogram:
    scores = np.array([case["single_score"] for case in cases])
    edges = np.linspace(scores.min(), scores.max(), 13)
    truth = np.array([case["label"] for case in cases])
    normal, anomalous = (np.histogram(scores[truth == value], edges)[0].tolist() for value in (0, 1))
    everything, nothing = np.histogram(scores, edges)[0].tolist(), [0] * 12
    return Histogram(
        edges=edges.tolist(),
        normal=normal if labels else nothing,
        anomalous=anomalous if labels else nothing,
        unlabelled=nothing if labels else everything,
    )


def _card(cases: Sequence[ShownCase], curves: dict[str, CurvePoints], labels: bool, masks: bool) -> Card:
    anomalous = sum(case["label"] or 0 for case in cases)
    return Card(
        images=len(cases),
        normal=len(cases) - anomalous if labels else 0,
        anomalous=anomalous if labels else 0,
        unlabelled=0 if labels else len(cases),
        defects={"bad <i>": anomalous} if labels and anomalous else {},
        mask_shares=[0.0012, 0.02, 0.25] if masks and labels and anomalous else None,
        vanished_masks=1 if masks and labels and anomalous else None,
        empty_masks=0 if masks and labels and anomalous else None,
        low=0.01153,
        high=0.02048,
        thresholds={level: best_threshold(points) for level, points in curves.items() if masks or level != "pixel"},
    )


def _rank(cases: Sequence[ShownCase]) -> None:
    misses = sorted((case for case in cases if case["label"]), key=lambda case: case["single_score"])
    alarms = sorted((case for case in cases if not case["label"]), key=lambda case: -case["single_score"])
    for name, ranked in (("worst miss", misses), ("worst false alarm", alarms), ("best hit", misses[::-1])):
        for rank, case in enumerate(ranked[:3], 1):
            case["ranks"][name] = rank
