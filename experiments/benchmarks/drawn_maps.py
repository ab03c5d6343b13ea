# N = images; S = side of an image
"""Anomaly maps and masks drawn for the benchmarks: as smooth as a method's, with an overlap of the classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SHARE_ANOMALOUS = 0.75  # of the images, about that of a MVTec category


class DrawnCategory(NamedTuple):
    """Maps (N, S, S) float32, masks (N, S, S) uint8 {0, 1}, and the number of connected regions."""

    maps: NDArray[np.float32]
    masks: NDArray[np.uint8]
    num_components: int


def draw_category(num_images: int, side: int, seed: int = 0) -> DrawnCategory:
    """Draw 1 to 4 ellipses in three of four masks; a map is smoothed noise and the smoothed mask, weakly."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    masks = np.zeros((num_images, side, side), np.uint8)
    maps = np.empty((num_images, side, side), np.float32)
    for index in range(num_images):
        if rng.random() < SHARE_ANOMALOUS:
            for _ in range(rng.integers(1, 5)):
                y, x = rng.uniform(0, side, 2)
                height, width = rng.uniform(0.01, 0.12, 2) * side
                masks[index] |= ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
        noise = ndimage.gaussian_filter(rng.standard_normal((side, side)).astype(np.float32), side / 60)
        defect = ndimage.gaussian_filter(masks[index].astype(np.float32), side / 60)
        maps[index] = 0.5 + 0.1 * noise / noise.std() + 0.15 * defect
    volume = np.zeros((3, 3, 3))
    volume[1] = 1  # images are not connected with each other
    return DrawnCategory(maps, masks, int(ndimage.label(masks, structure=volume)[1]))
