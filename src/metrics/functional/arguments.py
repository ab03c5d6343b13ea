# Turns whatever a caller hands in into what the metrics compute with, or says what is wrong with it.
"""Checks of metric inputs."""

import numpy as np
import torch
from torch import Tensor


def as_scores(value: Tensor, name: str) -> Tensor:
    """Return finite float32 or float64 scores on the CPU; half precision is widened, which keeps the ranking.

    Scores are any real numbers and are never squashed: a sigmoid saturates in floating point and makes ties.

    Args:
        value: floating point tensor of any shape.
        name: the argument's name, for the error.

    Raises:
        ValueError: if ``value`` is no floating point tensor or holds a NaN or an infinity, which would scramble a
            ranking without a word.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"Expected argument `{name}` to be a floating point tensor, but got {_kind(value)}.")
    scores = value.detach().cpu()
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    # A NaN is its own minimum and maximum. numpy's two passes take a tenth of the time of torch's isfinite.
    if scores.numel() and not np.isfinite((scores.numpy().min(), scores.numpy().max())).all():
        raise ValueError(f"Expected argument `{name}` to be finite, but got NaN or infinite values.")
    return scores


def as_truth(value: Tensor, name: str) -> Tensor:
    """Return a {0, 1} tensor of any dtype and shape as booleans on the CPU.

    Raises:
        ValueError: if ``value`` is no tensor or holds anything but 0 and 1 (a 0/255 mask, say).
    """
    if not isinstance(value, Tensor) or value.is_complex():
        raise ValueError(f"Expected argument `{name}` to be a tensor of 0 and 1, but got {_kind(value)}.")
    values = value.detach().cpu()
    if values.dtype == torch.bool:
        return values
    array = values.float().numpy() if values.is_floating_point() else values.numpy()
    truth = array != 0
    # Integers that lie in [0, 1] need no further look, and numpy's minimum and maximum take next to no time.
    in_range = array.size == 0 or (array.min() >= 0 and array.max() <= 1)
    if not in_range or (values.is_floating_point() and not (array == truth).all()):
        raise ValueError(f"Expected argument `{name}` to hold only 0 and 1, but got other values.")
    return torch.from_numpy(truth)


def check_shape(value: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """Raise a ``ValueError`` unless ``value`` has the shape of ``like``."""
    if value.shape != like.shape:
        raise ValueError(
            f"Expected argument `{name}` to have the shape of `{like_name}`, {tuple(like.shape)}, "
            f"but got {tuple(value.shape)}."
        )


def check_ndim(value: Tensor, name: str, ndim: int) -> None:
    """Raise a ``ValueError`` unless ``value`` has ``ndim`` dimensions."""
    if value.ndim != ndim:
        raise ValueError(f"Expected argument `{name}` to have {ndim} dimension(s), but got shape {tuple(value.shape)}.")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
