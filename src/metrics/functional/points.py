# T = distinct anomalous scores
"""A curve as a few hundred points, to draw it and to move a threshold along it."""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from src.metric_names import CurvePoints
from src.metrics.functional.curve import Curve
from src.metrics.functional.f1_max import f1_max

_MOST_CANDIDATES = 20_000  # of millions of thresholds; more would take time and change no line that is drawn


def curve_points(curve: Curve, max_fpr: float = 0.3, max_points: int = 500) -> CurvePoints | None:
    """Thin a curve out to points that show the same ROC, precision-recall and PRO curves.

    Both ends are kept: the first point finds nothing, the last everything. So are the point of the highest F1, and the
    two points beside the false-positive rate up to which AUPRO integrates. The others are evenly spaced along the
    curves. Every point is exact.

    Args:
        curve: of pixels or images.
        max_fpr: the limit of AUPRO, in (0, 1].
        max_points: at most so many, 10 or more.

    Returns:
        The points, or None if a class is missing.

    Raises:
        ValueError: if ``max_points`` is too small.

    Example:
        >>> import torch
        >>> from src.metrics.functional import exact_curve
        >>> points = curve_points(exact_curve(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.0])))
        >>> points["threshold"]
        [0.7500000596046448, 0.75, 0.2500000298023224, 0.25]
        >>> points["fpr"], points["recall"]
        ([0.0, 0.0, 0.5, 0.5], [0.0, 0.5, 0.5, 1.0])
    """
    if max_points < 10:
        raise ValueError(f"Expected argument `max_points` to be 10 or more, but got {max_points}.")
    best = f1_max(curve)
    if best is None:
        return None
    at = _candidates(curve, best.threshold, max_fpr)
    before = np.maximum(at - 1, 0)
    # Two points a threshold: of the scores above it, and of those at or above it.
    thresholds = curve.thresholds[at]
    above = torch.nextafter(thresholds, torch.full_like(thresholds, torch.inf))
    is_first = at == 0
    found = _pairs(np.where(is_first, 0, curve.true_positives.numpy()[before]), curve.true_positives.numpy()[at])
    false = _pairs(curve.normals_above.numpy()[at], curve.normals_at_or_above.numpy()[at])
    columns = {
        "threshold": _pairs(above.double().numpy(), thresholds.double().numpy()),
        "fpr": false / curve.num_normal,
        "recall": found / curve.num_anomalous,
        "precision": np.divide(found, found + false, out=np.ones(len(found)), where=found + false > 0),
    }
    if curve.overlap is not None:
        overlap = curve.overlap.numpy()
        columns["pro"] = _pairs(np.where(is_first, 0.0, overlap[before]), overlap[at])
    kept = _thinned(columns, best.threshold, max_fpr, max_points)
    kept = kept[np.isfinite(columns["threshold"][kept])]  # no number lies above the largest one
    return cast(CurvePoints, {name: values[kept].tolist() for name, values in columns.items()})


def _candidates(curve: Curve, best: float, max_fpr: float) -> NDArray[np.int64]:
    """Indices of the thresholds (T,) from which points are chosen: all, or every n-th and those that must be kept."""
    last = len(curve.thresholds) - 1
    every = np.arange(0, last + 1, max(1, len(curve.thresholds) // _MOST_CANDIDATES))
    limit = int(np.searchsorted(curve.normals_at_or_above.numpy() / curve.num_normal, max_fpr))
    at_best = int((curve.thresholds == best).nonzero()[0])
    return np.unique(np.clip([*every, at_best, limit - 1, limit, last], 0, last))


def _thinned(
    columns: dict[str, NDArray[np.float64]], best: float, max_fpr: float, max_points: int
) -> NDArray[np.int64]:
    """Indices of the points to keep: evenly spaced along the way that all curves go together."""
    rates = np.stack([values for name, values in columns.items() if name != "threshold"])  # (rates, points)
    moved = np.abs(np.diff(rates, prepend=rates[:, :1])).sum(axis=0)
    way = np.cumsum(moved)
    moves = np.flatnonzero(moved)  # a point that is where the one before it was shows nothing
    last = rates.shape[1] - 1
    limit = int(np.searchsorted(columns["fpr"], max_fpr))
    at_best = int(np.flatnonzero(columns["threshold"] == best)[0])
    must = np.clip([0, at_best, limit - 1, limit, last], 0, last)
    if len(moves) + len(must) > max_points:
        moves = np.searchsorted(way, np.linspace(0, way[-1], max_points - len(must)))
    kept: NDArray[np.int64] = np.unique([*np.clip(moves, 0, last), *must])
    return kept


def _pairs(first: NDArray[np.number], second: NDArray[np.number]) -> NDArray[np.float64]:
    """(T,) and (T,) -> (2 T,): the first of each, then the second of each, threshold by threshold."""
    return np.stack([first, second], axis=1).reshape(-1).astype(np.float64)
