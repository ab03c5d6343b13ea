"""Curves thinned to a few hundred points, against scikit-learn and against counting."""

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, roc_auc_score

from src.metrics.functional import aupro, component_areas, curve_points, exact_curve, f1_max


def drawn(normal: int, anomalous: int, decimals: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and truth of two overlapping classes; rounded, many scores tie."""
    generator = np.random.default_rng(seed)
    scores = np.concatenate([generator.normal(0, 1, normal), generator.normal(1, 1, anomalous)]).astype(np.float32)
    if decimals is not None:
        scores = scores.round(decimals)
    return scores, np.repeat([False, True], [normal, anomalous])


def points_of(scores: np.ndarray, truth: np.ndarray, **options: int) -> dict:
    curve = exact_curve(torch.from_numpy(scores[truth]), torch.from_numpy(scores[~truth]))
    return curve_points(curve, **options)


@pytest.mark.parametrize(("normal", "anomalous", "decimals"), [(40, 30, 1), (5, 1, None), (3000, 5000, None)])
def test_each_point_is_what_its_threshold_gives(normal: int, anomalous: int, decimals: int | None) -> None:
    scores, truth = drawn(normal, anomalous, decimals)
    points = points_of(scores, truth)
    assert points["threshold"] == sorted(points["threshold"], reverse=True)
    for threshold, fpr, recall, precision in zip(*points.values(), strict=True):
        predicted = scores.astype(np.float64) >= threshold
        found = (predicted & truth).sum()
        assert recall == found / anomalous
        assert fpr == (predicted & ~truth).sum() / normal
        assert precision == (found / predicted.sum() if predicted.any() else 1)


@pytest.mark.parametrize(("normal", "anomalous"), [(400, 300), (300_000, 40_000)])
def test_what_is_drawn_has_the_area_of_the_exact_curve(normal: int, anomalous: int) -> None:
    scores, truth = drawn(normal, anomalous)
    points = points_of(scores, truth)
    assert len(points["threshold"]) <= 500
    assert (points["recall"][0], points["recall"][-1]) == (0, 1)
    drawn_area = auc([0, *points["fpr"], 1], [0, *points["recall"], 1])
    assert drawn_area == pytest.approx(roc_auc_score(truth, scores), abs=2e-4)


def test_the_best_f1_and_the_limit_of_aupro_are_kept() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = (torch.rand(4, 60, 60, generator=generator) > 0.6).to(torch.uint8)
    maps = torch.rand(4, 60, 60, generator=generator) + 0.3 * masks
    truth = masks.bool()
    curve = exact_curve(maps[truth], maps[~truth], component_areas(truth).areas)
    points = curve_points(curve, max_points=40)
    best = f1_max(curve)
    assert len(points["threshold"]) <= 40
    at = points["threshold"].index(best.threshold)
    precision, recall = points["precision"][at], points["recall"][at]
    assert 2 * precision * recall / (precision + recall) == pytest.approx(best.value, abs=1e-12)
    fpr = np.array(points["fpr"])
    exact = np.sort(np.concatenate([curve.normals_at_or_above.numpy(), curve.normals_above.numpy()])) / curve.num_normal
    assert fpr[fpr <= 0.3].max() >= exact[exact <= 0.3].max() - 1e-12
    # The area is AUPRO's own, but for what lies between two of 40 points.
    below = np.append(fpr[fpr < 0.3], 0.3)
    area = auc(below, np.interp(below, fpr, points["pro"])) / 0.3
    assert area == pytest.approx(aupro(curve), abs=0.01)


def test_without_both_classes_there_is_no_curve() -> None:
    assert curve_points(exact_curve(torch.tensor([0.5]), torch.empty(0))) is None
    assert curve_points(exact_curve(torch.empty(0), torch.tensor([0.5]))) is None
    with pytest.raises(ValueError, match="max_points"):
        curve_points(exact_curve(torch.tensor([0.5]), torch.tensor([0.5])), max_points=3)


def test_no_threshold_is_infinite() -> None:
    largest = np.finfo(np.float32).max
    scores, truth = np.array([largest, -largest, 0, -largest], np.float32), np.array([True, True, False, False])
    points = points_of(scores, truth)
    assert np.isfinite(points["threshold"]).all()
    assert points["recall"][0] == 0.5  # nothing is above the largest number
    assert points["recall"][-1] == points["fpr"][-1] == 1
