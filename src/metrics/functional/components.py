# B = images of a batch; H, W = height, width; M = anomalous pixels of the mask, or of all masks
"""Connected regions of ground-truth masks."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from src.metrics.functional.arguments import as_truth, check_ndim


class ComponentAreas(NamedTuple):
    """For each anomalous pixel, in row-major order, its component's area (M,) int32; and the number of components."""

    areas: Tensor
    num_components: int


def component_areas(mask: Tensor) -> ComponentAreas:
    """Give each anomalous pixel the area of its 8-connected component, in pixels: 1 / area is its weight in PRO.

    ``scores[mask == 1]`` has the order of the areas.

    Args:
        mask: (H, W) or (B, H, W) {0, 1} of any dtype; may be empty of anomalies. Images are labelled apart.

    Raises:
        ValueError: if ``mask`` has another number of dimensions or holds anything but 0 and 1.

    Example:
        >>> component_areas(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]))
        ComponentAreas(areas=tensor([2, 1, 2], dtype=torch.int32), num_components=2)
    """
    if mask.ndim != 3:
        check_ndim(mask, "mask", 2)
    truth = as_truth(mask, "mask").numpy().reshape(-1, *mask.shape[-2:])  # (B, H, W)
    areas, num_components = [np.empty(0, np.int32)], 0
    for image in truth[truth.any(axis=(1, 2))]:  # most images are normal
        count, labels = cv2.connectedComponents(image.view(np.uint8), connectivity=8)  # the background is one of count
        component = labels[image]  # 1 ... count - 1
        areas.append(np.bincount(component).astype(np.int32)[component])
        num_components += count - 1
    return ComponentAreas(torch.from_numpy(np.concatenate(areas)), num_components)
