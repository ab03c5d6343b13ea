"""Average precision."""

from src.metrics.functional.curve import Curve


def average_precision(curve: Curve) -> float | None:
    """Return sum_t (recall_t - recall_{t-1}) * precision_t over descending thresholds t, in [0, 1].

    The step-wise sum of scikit-learn's `average_precision_score`, without interpolation. Recall rises only at anomalous
    scores, so the other thresholds add nothing. None if a class is missing.

    Example:
        >>> import torch
        >>> from src.metrics.functional import exact_curve
        >>> average_precision(exact_curve(torch.tensor([0.8, 0.3]), torch.tensor([0.4, 0.1])))
        0.8333333333333333
    """
    if not curve.has_both_classes:
        return None
    anomalous = curve.true_positives.diff(prepend=curve.true_positives.new_zeros(1)).double()  # (T,) at each threshold
    precision = curve.true_positives.double() / (curve.true_positives + curve.normals_at_or_above)  # (T,)
    return float((anomalous * precision).sum() / curve.num_anomalous)
