# A = anomalous scores, N = normal scores, T = distinct anomalous scores
"""The exact curve that AUROC, AP, F1-max and AUPRO are all read off.

A sample is predicted anomalous when its score is >= a threshold. Recall and PRO move only at the scores of anomalous
samples, and F1 and precision matter only there: between two of them nothing but false positives is added. So the few
anomalous scores are the only thresholds needed, and of the many normal scores only two counts per threshold.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.metrics.functional.checks import as_scores, check_ndim, check_shape


class ExactCurve(NamedTuple):
    """Cumulative counts at every distinct anomalous score, highest score first.

    Attributes:
        thresholds: (T,) distinct anomalous scores, strictly descending.
        true_positives: (T,) int64, anomalous scores >= threshold; the last is the number of anomalous scores.
        overlap: (T,) float64 in [0, 1], mean over the regions of the part that scores >= threshold (Per-Region
            Overlap); None where no weights were given.
        normals_above: (T,) int64, normal scores > threshold.
        normals_at_or_above: (T,) int64, normal scores >= threshold.
        num_normal: number of normal scores.
    """

    thresholds: Tensor
    true_positives: Tensor
    overlap: Tensor | None
    normals_above: Tensor
    normals_at_or_above: Tensor
    num_normal: int

    @property
    def num_anomalous(self) -> int:
        """Number of anomalous scores."""
        return int(self.true_positives[-1]) if len(self.true_positives) else 0

    @property
    def has_both_classes(self) -> bool:
        """Whether there is anything to rank: without both classes no metric is defined."""
        return self.num_anomalous > 0 and self.num_normal > 0


def exact_curve(anomalous_scores: Tensor, normal_scores: Tensor, weights: Tensor | None = None) -> ExactCurve:
    """Count, for each distinct anomalous score, what lies at and above it. Either class may be empty.

    Only `count_normals` looks at the normal scores, and its counts add up over any partition of them: processes would
    exchange anomalous scores (with weights) and counts, never a map.

    Args:
        anomalous_scores: (A,) floating point, finite, any range.
        normal_scores: (N,) floating point, finite, any range.
        weights: (A,) positive, 1 / area of the region that the anomalous pixel belongs to (see `component_weights`).

    Raises:
        ValueError: if a score is not finite, or shapes or dtypes don't fit.
    """
    anomalous_scores = as_scores(anomalous_scores, "anomalous_scores")
    check_ndim(anomalous_scores, "anomalous_scores", 1)
    if weights is None:
        ordered, order = _ascending(anomalous_scores).flip(0), None
    else:
        check_shape(weights, "weights", anomalous_scores, "anomalous_scores")
        ordered, order = anomalous_scores.sort(descending=True)

    thresholds, ties = torch.unique_consecutive(ordered, return_counts=True)
    true_positives = ties.cumsum(0)
    overlap = None
    if weights is not None:
        covered = weights.cpu().double()[order].cumsum(0)
        # The weights of a region sum to 1, so their total is the number of regions.
        overlap = covered[true_positives - 1] / covered[-1:]
    normals_above, normals_at_or_above = count_normals(thresholds, normal_scores)
    return ExactCurve(thresholds, true_positives, overlap, normals_above, normals_at_or_above, len(normal_scores))


def count_normals(thresholds: Tensor, normal_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Count the normal scores above, and at or above, each threshold.

    Args:
        thresholds: (T,) floating point, in any order.
        normal_scores: (N,) floating point, finite.

    Returns:
        (T,) and (T,) int64: normal scores > threshold, normal scores >= threshold.

    Raises:
        ValueError: if a normal score is not finite, or shape or dtype don't fit.
    """
    normal_scores = as_scores(normal_scores, "normal_scores")
    check_ndim(normal_scores, "normal_scores", 1)
    common = torch.promote_types(thresholds.dtype, normal_scores.dtype)  # widening keeps order and ties
    ascending, thresholds = _ascending(normal_scores).to(common), thresholds.to(common)
    total = len(ascending)
    return (
        total - torch.searchsorted(ascending, thresholds, right=True),
        total - torch.searchsorted(ascending, thresholds, right=False),
    )


def _ascending(scores: Tensor) -> Tensor:
    """Sort values alone: numpy's vectorised sort is 12 times as fast as torch's, which carries indices along."""
    return torch.from_numpy(np.sort(scores.numpy()))
