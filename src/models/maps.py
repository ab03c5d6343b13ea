"""From token grids to smooth maps at the image's size.

B images, P = g * g patches, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf, isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

TRUNCATE = 4.0


def to_grid(values: Tensor) -> Tensor:
    """Patch values in row order as an image: (B, P, C) -> (B, C, g, g).

    Example:
        >>> import torch
        >>> to_grid(torch.arange(4).view(1, 4, 1))
        tensor([[[[0, 1],
                  [2, 3]]]])
    """
    batch, patches, channels = values.shape
    side = isqrt(patches)
    return values.transpose(1, 2).reshape(batch, channels, side, side)


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps as scipy.ndimage.gaussian_filter does (mode `reflect`, truncate 4), on the maps' device.

    The filter is separable, and one dimension of it is a banded matrix into which the reflected border is folded: two
    matrix products, exact for any radius, also one that is larger than the map.

    Args:
        maps: (B, H, W).
        sigma: standard deviation in pixels; 0 returns the maps as they are.

    Returns:
        (B, H, W).

    Example:
        >>> import torch
        >>> gaussian_blur(torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]]), sigma=0.5).round(decimals=3)
        tensor([[[0.0000, 0.1060, 0.7870, 0.1060, 0.0000]]])
    """
    if sigma == 0:
        return maps
    height, width = maps.shape[-2:]
    rows = _blur_matrix(height, float(sigma)).to(maps)  # (H, H)
    columns = _blur_matrix(width, float(sigma)).to(maps)  # (W, W)
    return rows @ maps @ columns.T


def check_sigma(smoothing_sigma: float) -> None:
    """Refuse a standard deviation that `gaussian_blur` can't have.

    Raises:
        ValueError: it is no number, negative or not finite.

    Example:
        >>> check_sigma(0)
    """
    if not isinstance(smoothing_sigma, (int, float)) or not 0 <= smoothing_sigma < inf:
        raise ValueError(f"smoothing_sigma must be 0 or more pixels, but got {smoothing_sigma}")


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept has to serve training too
def _blur_matrix(size: int, sigma: float) -> Tensor:
    """The one-dimensional filter as a matrix (size, size) in float64: out = matrix @ signal."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    # scipy's `reflect` repeats the edge pixel (d c b a | a b c d | d c b a): a period of twice the size.
    source = (torch.arange(size)[:, None] + offsets[None, :]).remainder(2 * size)
    source = torch.where(source < size, source, 2 * size - 1 - source)  # (size, 2 * radius + 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, source, kernel.expand(size, -1))


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept has to serve training too
def aligned_upsampling(source: int, target: int) -> Tensor:
    """Linear interpolation with aligned corners as a matrix (target, source) in float64: out = matrix @ signal.

    As matrix products it is faster than torch's, and its gradient does not depend on the order of threads on a GPU.

    Example:
        >>> import torch
        >>> aligned_upsampling(2, 3) @ torch.tensor([0.0, 4.0], dtype=torch.float64)
        tensor([0., 2., 4.], dtype=torch.float64)
    """
    positions = torch.linspace(0, source - 1, target, dtype=torch.float64)  # of the targets among the sources
    distances = (positions[:, None] - torch.arange(source)).abs()  # (target, source)
    return (1 - distances).clamp_min(0)


def aligned_maps(values: Tensor, size: int) -> Tensor:
    """Bring values of patches to the image's size, linearly with aligned corners.

    Args:
        values: (B, C, P), patches in row order.
        size: of the image, in pixels.

    Returns:
        (B, C, size, size).

    Example:
        >>> import torch
        >>> aligned_maps(torch.tensor([[[0.0, 4.0, 0.0, 4.0]]]), size=3)[0, 0, 0]
        tensor([0., 2., 4.])
    """
    grids = to_grid(values.mT)  # (B, C, g, g)
    upsample = aligned_upsampling(grids.shape[-1], size).to(grids)  # (size, g)
    return upsample @ grids @ upsample.T


def upsampled(values: Tensor, size: int) -> Tensor:
    """Bring values of patches to the image's size, bilinearly, corners not aligned: (B, C, P) -> (B, C, size, size).

    Example:
        >>> import torch
        >>> upsampled(torch.tensor([[[0.0, 4.0, 0.0, 4.0]]]), size=4)[0, 0, 0]
        tensor([0., 1., 3., 4.])
    """
    return bilinear(to_grid(values.mT), (size, size))


def bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Torch's interpolation, corners not aligned, by one kernel whether deterministic algorithms are asked for or not.

    Where they are, as in every run, torch goes another way on a GPU, slower and with other last digits, though only the
    gradient would need it.

    Args:
        maps: (B, C, h, w).
        size: H and W.

    Returns:
        (B, C, H, W).

    Example:
        >>> import torch
        >>> bilinear(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
        tensor([[[[0., 1., 3., 4.]]]])
    """
    if maps.requires_grad:
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    resized: Tensor = torch.ops.aten.upsample_bilinear2d(maps, size, False)
    return resized


def resize_like(maps: Tensor, masks: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Bring maps to the size at which they are compared with masks, bilinearly.

    Args:
        maps: (B, H, W).
        masks: (B, h, w), or B masks (h, w) of sizes of their own.

    Returns:
        Maps of the masks' sizes, as a tensor or as a list like `masks`.

    Example:
        >>> import torch
        >>> maps = torch.zeros(2, 4, 4)
        >>> resize_like(maps, torch.zeros(2, 8, 6)).shape
        torch.Size([2, 8, 6])
        >>> [tuple(one.shape) for one in resize_like(maps, [torch.zeros(8, 6), torch.zeros(5, 5)])]
        [(8, 6), (5, 5)]
    """
    if isinstance(masks, Tensor):
        return _resize(maps, (masks.shape[-2], masks.shape[-1]))
    return [_resize(one[None], (mask.shape[-2], mask.shape[-1]))[0] for one, mask in zip(maps, masks, strict=True)]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return bilinear(maps[:, None], size)[:, 0]
