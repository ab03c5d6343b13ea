"""Area under the ROC curve."""

from src.metrics.functional.curve import Curve


def auroc(curve: Curve) -> float | None:
    """Return the probability, in [0, 1], that an anomalous sample outscores a normal one, a tie counting half.

    This Mann-Whitney form equals the trapezoid area under the ROC curve. None if a class is missing.

    Example:
        >>> import torch
        >>> from src.metrics.functional import exact_curve
        >>> auroc(exact_curve(torch.tensor([0.8, 0.3]), torch.tensor([0.4, 0.1])))
        0.75
    """
    if not curve.has_both_classes:
        return None
    anomalous = curve.true_positives.diff(prepend=curve.true_positives.new_zeros(1)).double()  # (T,) at each threshold
    beaten = curve.num_normal - 0.5 * (curve.normals_above + curve.normals_at_or_above).double()  # (T,)
    return float((anomalous * beaten).sum()) / (curve.num_anomalous * curve.num_normal)
