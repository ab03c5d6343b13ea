"""A metric: how many anomalous samples are found if only a few normal ones may be taken for anomalous."""

import torch
from torch import Tensor
from torchmetrics import Metric


class RecallAtFPR(Metric):
    """The recall at the lowest threshold that keeps the false positive rate.

    Args:
        max_fpr: the false positive rate, in [0, 1).
    """

    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, max_fpr: float) -> None:
        super().__init__()
        self.max_fpr = max_fpr
        self.add_state("preds", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add scores, any real numbers, and their targets {0, 1}, of one shape."""
        self.preds.append(preds.flatten())
        self.target.append(target.flatten())

    def compute(self) -> Tensor:
        """A scalar in [0, 1]."""
        preds, is_anomalous = torch.cat(self.preds), torch.cat(self.target).bool()
        normal = preds[~is_anomalous].sort(descending=True).values
        threshold = normal[int(self.max_fpr * len(normal))]  # a score above it is called anomalous
        return (preds[is_anomalous] > threshold).double().mean()
