# A = anomalous scores, N = normal scores, T = distinct anomalous scores
"""The curve that AUROC, AP, F1-max and AUPRO are all read off.

A sample is predicted anomalous when its score is >= a threshold. Recall and PRO move only at the scores of anomalous
samples, and F1 and precision matter only there: between two of them nothing but false positives is added. So the few
anomalous scores are the only thresholds needed, and of the many normal scores only two counts per threshold.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.metrics.functional.arguments import as_scores, check_ndim, check_shape
from src.metrics.functional.bits import from_ordered_bits, to_ordered_bits

Array = NDArray[np.floating]

_BLOCK = 1 << 12


class Curve(NamedTuple):
    """Cumulative counts at every distinct anomalous score, highest score first.

    Attributes:
        thresholds: (T,) distinct anomalous scores, strictly descending.
        true_positives: (T,) int64, anomalous scores >= threshold; the last is the number of anomalous scores.
        overlap: (T,) float64 in [0, 1], mean over the regions of the part that scores >= threshold (Per-Region
            Overlap); None where no areas were given.
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


class AnomalousSide(NamedTuple):
    """What the anomalous scores alone say of a `Curve`; its attributes are the curve's."""

    thresholds: Tensor
    true_positives: Tensor
    overlap: Tensor | None


def exact_curve(anomalous_scores: Tensor, normal_scores: Tensor, areas: Tensor | None = None) -> Curve:
    """Count, for each distinct anomalous score, what lies at and above it. Either class may be empty.

    Args:
        anomalous_scores: (A,) floating point, finite, any range.
        normal_scores: (N,) floating point, finite, any range.
        areas: (A,) int32, positive: of the region that the anomalous pixel belongs to (see `component_areas`).

    Raises:
        ValueError: if a score is not finite, or shapes or dtypes don't fit.

    Example:
        >>> curve = exact_curve(torch.tensor([0.5, 2.0, 0.5]), torch.tensor([0.5, 1.0, 0.0]))
        >>> curve.thresholds, curve.true_positives
        (tensor([2.0000, 0.5000]), tensor([1, 3]))
        >>> curve.normals_above, curve.normals_at_or_above, curve.num_normal
        (tensor([0, 1]), tensor([0, 2]), 3)
    """
    normal_scores = as_scores(normal_scores, "normal_scores")
    check_ndim(normal_scores, "normal_scores", 1)
    side = anomalous_side(anomalous_scores, areas)
    return Curve(*side, *count_normals(side.thresholds, ascending(normal_scores)), len(normal_scores))


def anomalous_side(scores: Tensor, areas: Tensor | None = None) -> AnomalousSide:
    """Rank anomalous scores. The result depends on what is given, to the last bit, and not on its order.

    Args:
        scores: (A,) floating point, finite.
        areas: (A,) int32, positive.

    Raises:
        ValueError: if a score is not finite, or shapes or dtypes don't fit.

    Example:
        >>> anomalous_side(torch.tensor([0.5, 2.0, 0.5]))
        AnomalousSide(thresholds=tensor([2.0000, 0.5000]), true_positives=tensor([1, 3]), overlap=None)
    """
    scores = as_scores(scores, "anomalous_scores")
    check_ndim(scores, "anomalous_scores", 1)
    if areas is None:
        ordered, ordered_areas = ascending(scores).numpy()[::-1], None
    else:
        check_shape(areas, "areas", scores, "anomalous_scores")
        ordered, ordered_areas = _descending(scores.numpy(), areas.numpy())
    is_last = np.ones(len(ordered), dtype=bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    last = np.flatnonzero(is_last)  # (T,) of those that tie
    overlap = None
    if ordered_areas is not None:
        covered = np.cumsum(1.0 / ordered_areas)  # float64; a region's pixels sum to 1, so the total is their number
        overlap = torch.from_numpy(covered[last] / covered[-1:])
    return AnomalousSide(torch.from_numpy(ordered[last]), torch.from_numpy(last + 1), overlap)


def _descending(scores: Array, areas: NDArray[np.int32]) -> tuple[Array, NDArray[np.integer]]:
    """Sort pairs by score, then by area. A float32 and its area fit one integer, which sorts four times as fast."""
    if scores.dtype != np.float32:
        order = np.lexsort((areas, scores))[::-1]
        return scores[order], areas[order]
    pairs = to_ordered_bits(scores).astype(np.uint64)
    pairs <<= np.uint64(32)
    pairs |= areas.astype(np.uint64)
    pairs.sort()
    pairs = pairs[::-1]
    return from_ordered_bits((pairs >> np.uint64(32)).astype(np.uint32)), pairs.astype(np.uint32)  # the low half


def count_normals(thresholds: Tensor, ascending_normals: Tensor) -> tuple[Tensor, Tensor]:
    """Count the normal scores above, and at or above, each threshold.

    The counts add up over any partition of the normal scores: processes exchange anomalous scores and counts, never a
    map.

    Args:
        thresholds: (T,) floating point, finite, in any order; a curve's is fast.
        ascending_normals: (N,) floating point, finite, ascending.

    Returns:
        (T,) and (T,) int64: normal scores > threshold, normal scores >= threshold.

    Example:
        >>> count_normals(torch.tensor([2.0, 0.5]), torch.tensor([0.0, 0.5, 1.0]))
        (tensor([0, 1]), tensor([0, 2]))
    """
    return _count(thresholds, [ascending_normals], map)


def _count(
    thresholds: Tensor, parts: Sequence[Tensor], mapping: Callable[..., Iterable[object]]
) -> tuple[Tensor, Tensor]:
    """Count over ascending parts, a block of thresholds at a time; `mapping` may do several at once."""
    common = torch.promote_types(thresholds.dtype, parts[0].dtype)  # widening keeps order and ties
    normals, values = [part.to(common).numpy() for part in parts], thresholds.to(common).numpy()
    above, at_or_above = np.zeros((2, len(values)), np.int64)

    def count(block: slice) -> None:
        for part in normals:
            more, as_many = _count_block(part, values[block])
            above[block] += more
            at_or_above[block] += as_many

    for _ in mapping(count, [slice(start, start + _BLOCK) for start in range(0, len(values), _BLOCK)]):
        pass
    return torch.from_numpy(above), torch.from_numpy(at_or_above)


def _count_block(normals: Array, values: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts of a few thresholds: searched among the normal scores of their range, which fit the processor's cache."""
    first, end = np.searchsorted(normals, values.min(), side="left"), np.searchsorted(normals, values.max(), "right")
    near, beyond = normals[first:end], len(normals) - end
    below = np.searchsorted(near, values, side="left")
    at_or_below = below.copy()
    tied = _tied(near, values, below, np.arange(len(values)))
    at_or_below[tied] += 1
    tied = _tied(near, values, at_or_below, tied)  # few have more than one normal score of the same value
    at_or_below[tied] = np.searchsorted(near, values[tied], side="right")
    return len(near) - at_or_below + beyond, len(near) - below + beyond


def sort_and_count(thresholds: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `count_normals` does, with normal scores in any order and as many threads as torch uses.

    Each thread sorts a part in place: ``normals`` is left in another order. However many there are, they share the
    counts, so that memory does not grow with cores.

    Example:
        >>> sort_and_count(torch.tensor([2.0, 0.5]), torch.tensor([1.0, 0.0, 0.5]))
        (tensor([0, 1]), tensor([0, 2]))
    """
    threads = torch.get_num_threads()
    parts = [part for part in normals.tensor_split(threads) if len(part)] or [normals]
    with ThreadPoolExecutor(threads) as pool:  # numpy lets go of the interpreter while it sorts and searches
        for _ in pool.map(lambda part: part.numpy().sort(), parts):
            pass
        return _count(thresholds, parts, pool.map)


def _tied(normals: Array, values: Array, places: NDArray[np.int64], of: NDArray[np.intp]) -> NDArray[np.intp]:
    """Those of the values (T,) whose place in the normal scores is taken by a score equal to them."""
    inside = of[places[of] < len(normals)]
    tied: NDArray[np.intp] = inside[normals[places[inside]] == values[inside]]
    return tied


def ascending(scores: Tensor) -> Tensor:
    """Sort values alone: numpy's vectorised sort is 12 times as fast as torch's, which carries indices along.

    Example:
        >>> ascending(torch.tensor([1.0, 0.0, 0.5]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return torch.from_numpy(np.sort(scores.numpy()))
