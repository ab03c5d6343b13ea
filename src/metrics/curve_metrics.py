"""The metrics one by one, as torchmetrics classes for any scores and targets.

Unlike torchmetrics' own classes of these names they take scores of any range and never apply a sigmoid. `compute`
returns a float64 scalar tensor, NaN where a class is missing: not a number is what a missing value is to a logger.
"""

from typing import Any

import torch
from torch import Tensor

from src.metrics.base import CurveMetric, RegionCurveMetric
from src.metrics.functional import aupro, auroc, average_precision, f1_max


class AUROC(CurveMetric):
    """Area under the ROC curve of (scores, targets), in [0, 1]; see `functional.auroc`.

    Example:
        >>> metric = AUROC()
        >>> metric.update(torch.tensor([0.1, 0.4, 0.3, 0.8]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return a float64 scalar, NaN if a class is missing."""
        return _scalar(auroc(self.curve()))


class AveragePrecision(CurveMetric):
    """Average precision of (scores, targets), in [0, 1]; see `functional.average_precision`.

    Example:
        >>> metric = AveragePrecision()
        >>> metric.update(torch.tensor([0.1, 0.4, 0.3, 0.8]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()
        tensor(0.8333, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return a float64 scalar, NaN if a class is missing."""
        return _scalar(average_precision(self.curve()))


class F1Max(CurveMetric):
    """Highest F1 of (scores, targets) over all thresholds, in [0, 1]; `functional.f1_max` gives the threshold too.

    Example:
        >>> metric = F1Max()
        >>> metric.update(torch.tensor([0.1, 0.4, 0.3, 0.8]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()
        tensor(0.8000, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return a float64 scalar, NaN if a class is missing."""
        best = f1_max(self.curve())
        return _scalar(best.value if best else None)


class AUPRO(RegionCurveMetric):
    """Area under the Per-Region Overlap curve of (maps, masks), in [0, 1]; see `functional.aupro`.

    Args:
        max_fpr: integrate up to this false-positive rate, in (0, 1].
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = AUPRO()
        >>> metric.update(torch.tensor([[[0.1, 0.2], [0.9, 0.8]]]), torch.tensor([[[0, 0], [1, 1]]]))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    def __init__(self, max_fpr: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_fpr = max_fpr

    def compute(self) -> Tensor:
        """Return a float64 scalar, NaN if a class is missing."""
        return _scalar(aupro(self.curve(), self.max_fpr))


def _scalar(value: float | None) -> Tensor:
    return torch.tensor(float("nan") if value is None else value, dtype=torch.float64)
