"""Highest F1 over all thresholds."""

from typing import NamedTuple

from src.metrics.functional.curve import Curve


class BestF1(NamedTuple):
    """The highest F1, in [0, 1], and the highest threshold that attains it: predict anomalous where score >= it."""

    value: float
    threshold: float


def f1_max(curve: Curve) -> BestF1 | None:
    """Return the maximum of F1 = 2 TP / (2 TP + FP + FN) over all thresholds, and where it is attained.

    A threshold at a normal score alone has the true positives of the next higher anomalous score and more false
    positives, so the maximum lies at an anomalous score. None if a class is missing.

    Example:
        >>> import torch
        >>> from src.metrics.functional import exact_curve
        >>> f1_max(exact_curve(torch.tensor([0.8, 0.3]), torch.tensor([0.4, 0.1])))
        BestF1(value=0.8, threshold=0.30000001192092896)
    """
    if not curve.has_both_classes:
        return None
    predicted = curve.true_positives + curve.normals_at_or_above  # (T,)
    f1 = 2 * curve.true_positives.double() / (predicted + curve.num_anomalous)  # (T,)
    best = int(f1.argmax())  # the first of equal maxima; thresholds descend
    return BestF1(float(f1[best]), float(curve.thresholds[best]))
