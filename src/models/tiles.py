"""One anomaly map from those of overlapping tiles of an image."""

from __future__ import annotations

import torch
from torch import Tensor


def blend_tiles(maps: Tensor, boxes: Tensor) -> Tensor:
    """Blend the maps of an image's tiles; where tiles overlap, each counts the more the nearer its middle is.

    Args:
        maps: (T, S, S), a map a tile.
        boxes: (T, 4), left, top, right and bottom of each tile in pixels of the image; all of one size.

    Returns:
        (h, w): the image's map, in which a tile has S x S pixels. Of a single tile it is the tile's map.

    Example:
        >>> maps = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])
        >>> blend_tiles(maps, torch.tensor([[0, 0, 100, 100], [50, 0, 150, 100]]))
        tensor([[0.0000, 0.5000, 1.0000],
                [0.0000, 0.5000, 1.0000]])
    """
    if len(maps) == 1:
        return maps[0]
    size = maps.shape[-1]
    sides = boxes[0, 2:] - boxes[0, :2]  # width, height
    starts = (boxes[:, :2] * size / sides).round().long()  # (T, 2) in pixels of the map
    width, height = (starts.amax(dim=0) + size).tolist()
    rise = torch.arange(1, size + 1, dtype=torch.float64, device=maps.device)
    side = torch.minimum(rise, rise.flip(0))
    weight = side[:, None] * side[None, :]  # (S, S), highest in the middle and nowhere 0
    total, weights = (torch.zeros(height, width, dtype=torch.float64, device=maps.device) for _ in range(2))
    for one, (left, top) in zip(maps, starts.tolist(), strict=True):
        total[top : top + size, left : left + size] += weight * one
        weights[top : top + size, left : left + size] += weight
    return (total / weights).to(maps.dtype)
