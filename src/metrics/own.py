# B = images of a batch; N = images of the category; H, W = height, width
"""Metrics of the user's own: any torchmetrics class whose `update` takes (preds, target)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from math import isfinite
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_max, dim_zero_min, dim_zero_sum

from src.metrics.exchange import gathered_objects, is_shared
from src.metrics.functional.arguments import as_scores, as_truth

_EXACT = (dim_zero_sum, dim_zero_max, dim_zero_min)


class OwnMetric(NamedTuple):
    """A metric of the user's own, and what it gets. It computes on the CPU; each category has an instance of its own.

    Attributes:
        level: `image`: `update(preds, target)` is called once, with the fused image scores (N,) float64 and the labels
            (N,) int64 of a category. `pixel`: it is called for each batch, with the maps (B, H, W) float32 or float64
            and the masks (B, H, W) int64 of a category; images of differing sizes come one by one.
        factory: makes an instance.

    Example:
        >>> from torchmetrics import MeanSquaredError
        >>> OwnMetric("pixel", MeanSquaredError).build("MSE")
        MeanSquaredError()
    """

    level: Literal["image", "pixel"]
    factory: Callable[[], Metric]

    def build(self, name: str) -> Metric:
        """Make an instance that leaves the exchange between processes to `of_all_processes`.

        Raises:
            ValueError: if there is no such level, or the factory makes something else.
        """
        if self.level not in ("image", "pixel"):
            raise ValueError(f"Expected argument `level` of metric {name} to be image or pixel, but got {self.level}.")
        metric = self.factory()
        if not isinstance(metric, Metric):
            raise ValueError(f"Expected metric {name} to be a torchmetrics.Metric, but got {type(metric).__name__}.")
        metric.sync_on_compute = False
        return metric


def add(metric: Metric, name: str, scores: Tensor, truth: Tensor) -> None:
    """Hand scores, floating point of any shape, and their truth, {0, 1}, to a metric.

    Raises:
        ValueError: if the metric refuses them.
    """
    with _named(name):
        metric.update(as_scores(scores, "scores"), as_truth(truth, "truth").long())


def add_maps(metric: Metric, name: str, maps: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor]) -> None:
    """Hand the maps and masks of a batch, (B, H, W) or B times (H_i, W_i), to a metric.

    Raises:
        ValueError: if the metric refuses them, or the processes that share the images can't share it.
    """
    if is_shared():
        _check_can_be_shared(metric, name)
    if isinstance(maps, Tensor) and isinstance(masks, Tensor):
        add(metric, name, maps, masks)
    else:
        for scores, mask in zip(maps, masks, strict=True):
            add(metric, name, scores[None], mask[None])


def value_of(metric: Metric, name: str) -> float | None:
    """Compute a metric; None where it is not a finite number, which is how torchmetrics says that there is none.

    Raises:
        ValueError: if the metric fails, or gives more than a number.
    """
    with _named(name):
        value = torch.as_tensor(metric.compute())
    if value.numel() != 1:
        raise ValueError(f"Expected metric {name} to give one number, but got shape {tuple(value.shape)}.")
    return float(value) if isfinite(value) else None


def of_all_processes(metric: Metric) -> Metric:
    """Join the states of all processes; each of them has to call this, also one without an image.

    Lists are joined in the order of the processes. torchmetrics' own exchange aborts where one has no image.
    """
    if not is_shared():
        return metric
    first, *others = [one for one in gathered_objects(metric if metric.update_called else None) if one is not None]
    for state, reduction in first._reductions.items():  # torchmetrics has no public name for it
        parts = [getattr(one, state) for one in (first, *others)]
        if isinstance(parts[0], list):
            setattr(first, state, list(chain(*parts)))
        elif callable(reduction):  # of the others there are none, see `_check_can_be_shared`
            setattr(first, state, reduction(torch.stack(parts)))
    return first


def _check_can_be_shared(metric: Metric, name: str) -> None:
    has_others = any(isinstance(module, Metric) and module is not metric for module in metric.modules())
    states = [
        state
        for state, reduction in metric._reductions.items()
        if not isinstance(getattr(metric, state), list) and reduction not in _EXACT
    ]
    if has_others or states:
        reason = f"it has the states {states}" if states else "it holds other metrics"
        raise ValueError(
            f"Expected metric {name} to have lists, sums, minima and maxima as states, which processes can join, but "
            f"{reason}; use one process."
        )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which metric has failed."""
    try:
        yield
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"Expected metric {name} to work, but got {type(error).__name__}: {error}") from error
