# B = images of a batch; H, W = height, width
"""States and updates that the metric classes share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from src.metrics.functional import ExactCurve, auroc, average_precision, component_weights, exact_curve, f1_max
from src.metrics.functional.checks import as_scores, as_truth, check_shape


class CurveMetric(Metric):
    """Collect (score, target) pairs split by class, ready for `exact_curve`.

    The states are lists on the CPU whatever the device of the inputs: an exact curve needs every score, a category's
    maps would fill the accelerator beside the model, and sorting values alone is what a CPU does well. Under several
    processes they would be gathered ("cat"), which torchmetrics does not survive where a process has no sample of a
    category: the project refuses several processes for now.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    anomalous_scores: list[Tensor]
    anomalous_weights: list[Tensor]
    normal_scores: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("anomalous_scores", default=[], dist_reduce_fx="cat")
        self.add_state("anomalous_weights", default=[], dist_reduce_fx="cat")
        self.add_state("normal_scores", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Add samples.

        Args:
            scores: floating point, any shape, finite; any range: a higher score is more anomalous.
            targets: {0, 1}, same shape; 1 is anomalous.

        Raises:
            ValueError: if a score is not finite, or shapes, dtypes or values don't fit.
        """
        check_shape(targets, "targets", scores, "scores")
        scores, targets = as_scores(scores, "scores"), as_truth(targets, "targets")
        self.anomalous_scores.append(scores[targets])
        self.normal_scores.append(scores[~targets])

    def curve(self) -> ExactCurve:
        """Return the exact curve of everything that was added; without weights it has no region overlap."""
        weights = joined(self.anomalous_weights) if self.anomalous_weights else None
        return exact_curve(joined(self.anomalous_scores), joined(self.normal_scores), weights)


class RegionCurveMetric(CurveMetric):
    """Collect maps and masks: beside the scores, each anomalous pixel's weight 1 / area of its component."""

    def update(self, anomaly_map: Tensor | Sequence[Tensor], mask: Tensor | Sequence[Tensor]) -> None:
        """Add images.

        Args:
            anomaly_map: (B, H, W) floating point, finite, any range; or B maps (H_i, W_i) of differing sizes.
            mask: {0, 1}, same shapes; 1 is anomalous.

        Raises:
            ValueError: if a map is not finite, or shapes, dtypes or values don't fit.
        """
        if len(anomaly_map) != len(mask):
            raise ValueError(
                f"Expected argument `mask` to have one mask per map, {len(anomaly_map)}, but got {len(mask)}."
            )
        maps, truths = _checked(as_scores, anomaly_map, "anomaly_map"), _checked(as_truth, mask, "mask")
        for scores, truth in zip(maps, truths, strict=True):
            check_shape(truth, "mask", scores, "anomaly_map")
            self.anomalous_weights.append(component_weights(truth).weights)  # each mask is labelled once, here
            self.anomalous_scores.append(scores[truth])
            self.normal_scores.append(scores[~truth])


def _checked(
    check: Callable[[Tensor, str], Tensor], value: Tensor | Sequence[Tensor], name: str
) -> Tensor | Sequence[Tensor]:
    return check(value, name) if isinstance(value, Tensor) else [check(image, name) for image in value]


def joined(state: list[Tensor]) -> Tensor:
    """Concatenate a list state; a state that never got anything is an empty float tensor."""
    return dim_zero_cat(state) if len(state) else torch.empty(0)


def summarise(curve: ExactCurve, prefix: str) -> dict[str, float]:
    """Name AUROC, AP, F1-max and its threshold with a prefix; empty where a class is missing."""
    best = f1_max(curve)
    values = {
        "AUROC": auroc(curve),
        "AP": average_precision(curve),
        "F1Max": best.value if best else None,
        "F1Max_threshold": best.threshold if best else None,
    }
    return {f"{prefix}_{name}": value for name, value in values.items() if value is not None}
