# B = images of a batch; H, W = height, width
"""States and updates that the metric classes share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from src.metrics.exchange import common_dtype, gathered, summed
from src.metrics.functional import (
    Curve,
    CurvePoints,
    anomalous_side,
    auroc,
    average_precision,
    component_areas,
    curve_points,
    f1_max,
    sort_and_count,
)
from src.metrics.functional.arguments import as_scores, as_truth, check_ndim, check_shape


class CpuMetric(Metric):
    """A metric whose states stay on the CPU when it is moved to another device."""

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Module:
        moved: Module = super()._apply(fn, exclude_state=[*exclude_state, *self._defaults])
        return moved


class CurveMetric(CpuMetric):
    """Collect (score, target) pairs split by class, ready for an exact curve.

    The states are lists on the CPU whatever the device of the inputs: an exact curve needs every score, a category's
    maps would fill the accelerator beside the model, and sorting values alone is what a CPU does well.

    Several processes exchange in `compute` what `curve` needs, never a map, so all of them have to call it, also one
    without a sample. torchmetrics' own exchange is off: it gathers whole states, and aborts where one is empty. A
    cached result is off too: a process without new samples would not join.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    anomalous_scores: list[Tensor]
    anomalous_areas: list[Tensor]
    normal_scores: list[Tensor]
    with_regions = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False, **kwargs)
        for state in ("anomalous_scores", "anomalous_areas", "normal_scores"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Add samples.

        Args:
            scores: floating point, any shape, finite; any range: a higher score is more anomalous.
            targets: {0, 1}, same shape; 1 is anomalous.

        Raises:
            ValueError: if a score is not finite, or shapes, dtypes or values don't fit.
        """
        check_shape(targets, "targets", scores, "scores")
        self._add(as_scores(scores, "scores"), as_truth(targets, "targets"))

    def _add(self, scores: Tensor, truth: Tensor) -> None:
        values, is_anomalous = scores.numpy(), truth.numpy()  # numpy's boolean indexing is 4 times as fast as torch's
        self.anomalous_scores.append(torch.from_numpy(values[is_anomalous]))
        self.normal_scores.append(torch.from_numpy(values[~is_anomalous]))

    def curve(self) -> Curve:
        """Return the exact curve of everything that was added, in whichever process.

        The few anomalous scores are gathered; the normal ones stay where they are, and each process counts its own.
        """
        normals = joined(self.normal_scores)
        self.normal_scores = [normals]  # lets go of the parts: 8 bytes a pixel at most
        areas = gathered(joined(self.anomalous_areas).int()) if self.with_regions else None
        side = anomalous_side(gathered(common_dtype(joined(self.anomalous_scores))), areas)
        above, at_or_above = sort_and_count(side.thresholds, normals)
        return Curve(*side, summed(above), summed(at_or_above), int(summed(torch.tensor(len(normals)))))


class RegionCurveMetric(CurveMetric):
    """Collect maps and masks: beside the scores, the area of each anomalous pixel's component."""

    with_regions = True

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
            check_ndim(truth, "mask", 3 if isinstance(mask, Tensor) else 2)
            check_shape(truth, "mask", scores, "anomaly_map")
        for scores, truth in zip(maps, truths, strict=True):
            self._add(scores, truth)
            self.anomalous_areas.append(component_areas(truth).areas)  # each mask is labelled once, here


def _checked(check: Callable[[Tensor, str], Tensor], value: Tensor | Sequence[Tensor], name: str) -> list[Tensor]:
    """A batch of images of one size stays in one piece."""
    return [check(images, name) for images in ([value] if isinstance(value, Tensor) else value)]


def joined(state: list[Tensor]) -> Tensor:
    """Concatenate a list state; a state that never got anything is an empty float tensor.

    By numpy, which asks for large pages: fetching small ones would take longer than the copy itself.
    """
    return torch.from_numpy(np.concatenate([part.cpu().numpy() for part in state])) if state else torch.empty(0)


def summarise(curve: Curve, prefix: str) -> dict[str, float]:
    """Name AUROC, AP, F1-max and its threshold with a prefix; empty where a class is missing."""
    best = f1_max(curve)
    values = {
        "AUROC": auroc(curve),
        "AP": average_precision(curve),
        "F1Max": best.value if best else None,
        "F1Max_threshold": best.threshold if best else None,
    }
    return {f"{prefix}_{name}": value for name, value in values.items() if value is not None}


def points_of(curves: Mapping[str, Curve]) -> dict[str, CurvePoints]:
    """The points of each curve that has both classes."""
    points = {name: curve_points(curve) for name, curve in curves.items()}
    return {name: some for name, some in points.items() if some is not None}
