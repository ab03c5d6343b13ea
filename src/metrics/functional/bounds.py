# T = thresholds of the curve
"""How far off a histogram's metrics can be: bounds, not estimates (but for the rounding of its weights, below 1e-6).

The curve of a histogram is right at its bins' edges. Inside a bin nothing is known of the order, so each bound comes
from the best and the worst order of what every bin holds: a bin's anomalous scores with its normal ones. `tp0` and
`fp0` are what lies above a bin, `tp1` and `fp1` what lies in it or above.
"""

import torch
from torch import Tensor

from src.metrics.functional.aupro import pro_segments
from src.metrics.functional.average_precision import average_precision
from src.metrics.functional.curve import Curve
from src.metrics.functional.f1_max import f1_max


def auroc_error(curve: Curve) -> float | None:
    """Half of the pairs of an anomalous and a normal score that share a bin; None if a class is missing.

    Example:
        >>> from src.metrics.functional import count_anomalous, count_normal, empty_histogram, histogram_curve
        >>> histogram = empty_histogram()
        >>> count_anomalous(histogram, torch.tensor([0.5, 2.0]), torch.tensor([1, 1], dtype=torch.int32))
        >>> count_normal(histogram, torch.tensor([0.5, 0.1]))
        >>> auroc_error(histogram_curve(histogram))
        0.125
    """
    if not curve.has_both_classes:
        return None
    tp0, tp1, fp0, fp1 = _corners(curve)
    return float(((tp1 - tp0) * (fp1 - fp0)).sum() / 2) / (curve.num_anomalous * curve.num_normal)


def average_precision_error(curve: Curve) -> float | None:
    """The larger distance to two bounds; None if a class is missing.

    At best all anomalous scores of a bin tie, above its normal ones. At worst they lie apart below them. As
    tp / (tp + fp) is concave in tp, its mean over them is at least that of the first and the last, and at least the
    mean integral that reaches half a step beyond both. The first is exact for one or two scores and the second nearly
    so for many; the bound is at most 5 % above what the worst order does.

    Example:
        >>> from src.metrics.functional import count_anomalous, count_normal, empty_histogram, histogram_curve
        >>> histogram = empty_histogram()
        >>> count_anomalous(histogram, torch.tensor([0.5, 2.0]), torch.tensor([1, 1], dtype=torch.int32))
        >>> count_normal(histogram, torch.tensor([0.5, 0.1]))
        >>> round(average_precision_error(histogram_curve(histogram)), 4)
        0.1667
    """
    value = average_precision(curve)
    if value is None:
        return None
    tp0, tp1, fp0, fp1 = _corners(curve)
    part = (tp1 - tp0) / curve.num_anomalous  # (T,)
    best = part * tp1 / (tp1 + fp0)
    first, last = (tp0 + 1) / (tp0 + 1 + fp1), tp1 / (tp1 + fp1)
    integral = 1 - fp1 / (tp1 - tp0) * torch.log1p((tp1 - tp0) / (tp0 + 0.5 + fp1))
    worst = part * torch.maximum((first + last) / 2, integral)
    return max(float(best.sum()) - value, value - float(worst.sum()))


def f1_max_error(curve: Curve) -> float | None:
    """What F1 gains at most if a bin's anomalous scores lie above its normal ones; None if a class is missing.

    It loses nothing, as the bins' edges are thresholds like others.

    Example:
        >>> from src.metrics.functional import count_anomalous, count_normal, empty_histogram, histogram_curve
        >>> histogram = empty_histogram()
        >>> count_anomalous(histogram, torch.tensor([0.5, 2.0]), torch.tensor([1, 1], dtype=torch.int32))
        >>> count_normal(histogram, torch.tensor([0.5, 0.1]))
        >>> round(f1_max_error(histogram_curve(histogram)), 4)
        0.2
    """
    best = f1_max(curve)
    if best is None:
        return None
    _, tp1, fp0, _ = _corners(curve)
    return float((2 * tp1 / (tp1 + fp0 + curve.num_anomalous)).max()) - best.value


def aupro_error(curve: Curve, max_fpr: float = 0.3) -> float | None:
    """The area between the rises drawn and those of the best and the worst order; None if a class is missing.

    Example:
        >>> from src.metrics.functional import count_anomalous, count_normal, empty_histogram, histogram_curve
        >>> histogram = empty_histogram()
        >>> count_anomalous(histogram, torch.tensor([0.5, 2.0]), torch.tensor([1, 1], dtype=torch.int32))
        >>> count_normal(histogram, torch.tensor([0.5, 0.1]))
        >>> round(aupro_error(histogram_curve(histogram)), 4)
        0.35
    """
    segments = pro_segments(curve, max_fpr)
    if segments is None:
        return None
    drawn = segments.rise_kept / 2  # mean height above the start of a rise, which may lie in [0, rise]
    return float((segments.width * torch.maximum(drawn, segments.rise - drawn)).sum() / segments.limit)


def _corners(curve: Curve) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """tp0, tp1, fp0, fp1 of each threshold's bin, (T,) float64 each."""
    tp1, fp0, fp1 = (x.double() for x in (curve.true_positives, curve.normals_above, curve.normals_at_or_above))
    return tp1 - tp1.diff(prepend=tp1.new_zeros(1)), tp1, fp0, fp1
