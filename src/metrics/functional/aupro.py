"""Area under the Per-Region Overlap curve."""

from typing import NamedTuple

import torch
from torch import Tensor

from src.metrics.functional.curve import Curve


class ProSegments(NamedTuple):
    """The straight pieces of a PRO curve, from false-positive rate 0 to the limit and beyond.

    Attributes:
        pro: (S,) float64, PRO at a segment's start.
        rise: (S,) float64, what PRO gains over the segment.
        kept: (S,) float64, the segment's width up to the limit, in normal pixels.
        rise_kept: (S,) float64, what PRO gains over that width.
        limit: the limit, in normal pixels.
    """

    pro: Tensor
    rise: Tensor
    kept: Tensor
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
    """
    segments = pro_segments(curve, max_fpr)
    if segments is None:
        return None
    area = (segments.kept * (segments.pro + 0.5 * segments.rise_kept)).sum() / segments.limit
    return min(float(area), 1.0)  # rounding of the sums may exceed 1 by an ulp


def pro_segments(curve: Curve, max_fpr: float) -> ProSegments | None:
    """Split the PRO curve into segments; arguments and errors as of `aupro`, None if a class is missing."""
    if not 0 < max_fpr <= 1:
        raise ValueError(f"Expected argument `max_fpr` to be in (0, 1], but got {max_fpr}.")
    if not curve.has_both_classes:
        return None
    if curve.overlap is None:
        raise ValueError("Expected argument `curve` to be made with `areas`, but got one without.")

    # Two corners per threshold: just before it, and with all that ties with it. (0, 0) and (N, 1) close the ends.
    zero, one = curve.overlap.new_zeros(1), curve.overlap.new_ones(1)
    corners = torch.stack((curve.normals_above, curve.normals_at_or_above), dim=1).flatten().double()  # (2T,)
    false_positives = torch.cat((zero, corners, curve.num_normal * one))  # (2T + 2,)
    pro_before = torch.cat((zero, curve.overlap[:-1]))  # (T,)
    pro = torch.cat((zero, torch.stack((pro_before, curve.overlap), dim=1).flatten(), one))  # (2T + 2,)

    limit = max_fpr * curve.num_normal
    width, rise = false_positives.diff(), pro.diff()  # (S,) = (2T + 1,)
    kept = false_positives.clamp(max=limit).diff()
    rise_kept = torch.where(width > 0, rise * kept / width.clamp(min=1), rise)
    return ProSegments(pro[:-1], rise, kept, rise_kept, limit)
