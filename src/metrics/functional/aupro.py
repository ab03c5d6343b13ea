"""Area under the Per-Region Overlap curve."""

import torch

from src.metrics.functional.curve import ExactCurve


def aupro(curve: ExactCurve, max_fpr: float = 0.3) -> float | None:
    """Return the area under PRO over the false-positive rate in [0, max_fpr], divided by max_fpr: in [0, 1].

    PRO at a threshold is the mean, over all connected regions of the ground truth, of the part of the region that is
    predicted anomalous, so a small defect counts as much as a large one; the false-positive rate is over all normal
    pixels, those of normal images included. All thresholds are used: between anomalous scores the curve runs
    horizontally, at a score shared by anomalous and normal pixels it runs diagonally, and at max_fpr it is
    interpolated linearly. Bergmann et al., "Uninformed Students", CVPR 2020, https://arxiv.org/abs/1911.02357, and
    "The MVTec Anomaly Detection Dataset", IJCV 2021, https://doi.org/10.1007/s11263-020-01400-4.

    Args:
        curve: pixels of a whole category, made with weights.
        max_fpr: in (0, 1].

    Returns:
        None if a class is missing.

    Raises:
        ValueError: if the curve has no weights or ``max_fpr`` is out of range.
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"Expected argument `max_fpr` to be in (0, 1], but got {max_fpr}.")
    if not curve.has_both_classes:
        return None
    if curve.overlap is None:
        raise ValueError("Expected argument `curve` to be made with `weights`, but got one without.")

    # Two corners per threshold: just before it, and with all that ties with it. (0, 0) and (N, 1) close the ends.
    zero, one = curve.overlap.new_zeros(1), curve.overlap.new_ones(1)
    corners = torch.stack((curve.normals_above, curve.normals_at_or_above), dim=1).flatten().double()  # (2T,)
    false_positives = torch.cat((zero, corners, curve.num_normal * one))  # (2T + 2,)
    pro_before = torch.cat((zero, curve.overlap[:-1]))  # (T,)
    pro = torch.cat((zero, torch.stack((pro_before, curve.overlap), dim=1).flatten(), one))  # (2T + 2,)

    limit = max_fpr * curve.num_normal
    width, rise = false_positives.diff(), pro.diff()  # (2T + 1,)
    kept = false_positives.clamp(max=limit).diff()  # width of the segment's part up to the limit
    rise_kept = torch.where(width > 0, rise * kept / width.clamp(min=1), rise)
    area = (kept * (pro[:-1] + 0.5 * rise_kept)).sum() / limit
    return min(float(area), 1.0)  # rounding of the sums may exceed 1 by an ulp
