# A = anomalous scores, N = normal scores, K = bins
"""A curve from counts in bins: memory that does not grow with the number of pixels.

Bins are the leading bits of the order-preserving pattern of a float32, 2048 of them an octave. Unlike linear bins they
need no range in advance and give the same figures at any scale. They are not shift-free: scores crowded into a narrow
range far from 0 occupy few bins, so `functional.bounds` says for each metric how far off it can be.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.metrics.functional.bits import from_ordered_bits, to_ordered_bits
from src.metrics.functional.curve import Curve

NUM_BINS = 1 << 20
_SHIFT = np.uint32(32 - 20)
# Weights 1 / area are whole multiples of 1 / _UNIT, so that their sums don't depend on the order in which they are
# added up. There is room for 2^23 regions a category, and one of 10^6 pixels weighs 5e-7 too much or too little.
_UNIT = 1 << 40
_PART = 1 << 20  # scores that are counted at once: what is needed beside the histogram stays constant


def empty_histogram() -> Tensor:
    """Return a histogram (3, K) int64 of nothing; histograms are merged by adding them up.

    Its rows: normal scores in each bin, anomalous scores, and the sum of the anomalous pixels' weights 1 / area.

    Example:
        >>> empty_histogram().shape
        torch.Size([3, 1048576])
    """
    return torch.zeros(3, NUM_BINS, dtype=torch.int64)


def count_anomalous(histogram: Tensor, scores: Tensor, areas: Tensor) -> None:
    """Add anomalous scores (A,) with their components' areas (A,) to a histogram (3, K), in place.

    Scores are finite floating point, and float64 is rounded to float32; areas int32, positive (see `component_areas`).

    Example:
        >>> histogram = empty_histogram()
        >>> count_anomalous(histogram, torch.tensor([0.5, 2.0]), torch.tensor([1, 4], dtype=torch.int32))
        >>> histogram.sum(dim=1)[:2]
        tensor([0, 2])
    """
    bins = _bins_of(scores)
    _, anomalous, weights = histogram.numpy()
    anomalous += np.bincount(bins, minlength=NUM_BINS)
    np.add.at(weights, bins, np.rint(_UNIT / areas.numpy()).astype(np.int64))


def count_normal(histogram: Tensor, scores: Tensor) -> None:
    """Add normal scores (N,), finite floating point, to a histogram (3, K), in place.

    Example:
        >>> histogram = empty_histogram()
        >>> count_normal(histogram, torch.tensor([0.5, 2.0, 0.0]))
        >>> histogram.sum(dim=1)[:2]
        tensor([3, 0])
    """
    for part in torch.split(scores, _PART):
        normals = histogram.numpy()[0]
        normals += np.bincount(_bins_of(part), minlength=NUM_BINS)


def histogram_curve(histogram: Tensor) -> Curve:
    """Return the curve of the scores rounded down to their bins' lower edges: the exact one of coarser scores.

    Example:
        >>> histogram = empty_histogram()
        >>> count_anomalous(histogram, torch.tensor([0.5, 2.0]), torch.tensor([1, 4], dtype=torch.int32))
        >>> histogram_curve(histogram).thresholds
        tensor([2.0000, 0.5000])
    """
    normals, anomalous, weights = histogram.numpy()[:, ::-1]  # highest score first
    at = np.flatnonzero(anomalous)  # (T,)
    at_or_above = np.cumsum(normals)
    edges = from_ordered_bits((NUM_BINS - 1 - at).astype(np.uint32) << _SHIFT)
    overlap = np.cumsum(weights[at]) / max(weights.sum(), 1)
    normals_at_or_above = torch.from_numpy(at_or_above[at])
    return Curve(
        torch.from_numpy(edges),
        torch.from_numpy(np.cumsum(anomalous[at])),
        torch.from_numpy(overlap),
        normals_at_or_above - torch.from_numpy(normals[at]),
        normals_at_or_above,
        int(at_or_above[-1]),
    )


def _bins_of(scores: Tensor) -> NDArray[np.intp]:
    bins: NDArray[np.intp] = (to_ordered_bits(scores.float().numpy()) >> _SHIFT).astype(np.intp)
    return bins
