"""Area under the Per-Region Overlap curve."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from src.metrics.functional.curve import Curve


class ProSegments(NamedTuple):
    """The PRO curve up to the limit: it runs to the right, then up at a threshold, then to the right, and so on.

    Where normal pixels share the threshold, it rises over a width and not at once. Widths are in normal pixels.

    Attributes:
        pro: (T' + 1,) float64 in [0, 1], its height before the first threshold and after each.
        flat: (T' + 1,) float64, the width at each height.
        rise: (T',) float64, what it gains at each threshold.
        width: (T',) float64, over which it gains that, up to the limit.
        rise_kept: (T',) float64, what it gains over that width.
        limit: the limit.
    """

    pro: Tensor
    flat: Tensor
    rise: Tensor
    width: Tensor
    rise_kept: Tensor
    limit: float


def aupro(curve: Curve, max_fpr: float = 0.3) -> float | None:
    """Return the area under PRO over the false-positive rate in [0, max_fpr], divided by max_fpr: in [0, 1].

    PRO at a threshold is the mean, over all connected regions of the ground truth, of the part of the region that is
    predicted anomalous, so a small defect counts as much as a large one; the false-positive rate is over all normal
    pixels, those of normal images included. All thresholds are used: between anomalous scores the curve runs
    horizontally, at a score shared by anomalous and normal pixels it runs diagonally, and at max_fpr it is
    interpolated linearly. Bergmann et al., "Uninformed Students", CVPR 2020, https://arxiv.org/abs/1911.02357, and
    "The MVTec Anomaly Detection Dataset", IJCV 2021, https://doi.org/10.1007/s11263-020-01400-4.

    Args:
        curve: pixels of a whole category, made with areas.
        max_fpr: in (0, 1].

    Returns:
        None if a class is missing.

    Raises:
        ValueError: if the curve has no areas or ``max_fpr`` is out of range.

    Example:
        >>> from src.metrics.functional import exact_curve
        >>> scores, areas = torch.tensor([0.8, 0.3]), torch.tensor([2, 2], dtype=torch.int32)
        >>> aupro(exact_curve(scores, torch.tensor([0.4, 0.1]), areas))
        0.5
    """
    segments = pro_segments(curve, max_fpr)
    if segments is None:
        return None
    area = (segments.flat * segments.pro).sum()
    area += (segments.width * (segments.pro[:-1] + 0.5 * segments.rise_kept)).sum()
    return min(float(area) / segments.limit, 1.0)  # rounding of the sums may exceed 1 by an ulp


def pro_segments(curve: Curve, max_fpr: float) -> ProSegments | None:
    """Split the PRO curve into segments; arguments and errors as of `aupro`, None if a class is missing."""
    if not 0 < max_fpr <= 1:
        raise ValueError(f"Expected argument `max_fpr` to be in (0, 1], but got {max_fpr}.")
    if not curve.has_both_classes:
        return None
    if curve.overlap is None:
        raise ValueError("Expected argument `curve` to be made with `areas`, but got one without.")

    limit = max_fpr * curve.num_normal
    within = slice(int(torch.searchsorted(curve.normals_above, math.ceil(limit))))  # T' thresholds start left of it
    start, end = curve.normals_above[within].double(), curve.normals_at_or_above[within].double()
    pro = F.pad(curve.overlap[within], (1, 0))
    flat = (F.pad(start, (0, 1), value=limit) - F.pad(end, (1, 0))).clamp(min=0)
    rise, width = pro.diff(), end.clamp(max=limit) - start
    return ProSegments(pro, flat, rise, width, rise * width / (end - start).clamp(min=1), limit)
