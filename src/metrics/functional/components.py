# H, W = height, width; M = anomalous pixels of the mask
"""Connected regions of a ground-truth mask."""

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from src.metrics.functional.checks import as_truth, check_ndim

EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


class ComponentWeights(NamedTuple):
    """Weights (M,) float64 of a mask's anomalous pixels in row-major order, and its number of components."""

    weights: Tensor
    num_components: int


def component_weights(mask: Tensor) -> ComponentWeights:
    """Give each anomalous pixel 1 / area of its 8-connected component, so that every component weighs 1 in all.

    ``scores[mask == 1]`` has the order of the weights.

    Args:
        mask: (H, W) {0, 1} of any dtype; may be empty of anomalies.

    Raises:
        ValueError: if ``mask`` is not two-dimensional or holds anything but 0 and 1.
    """
    check_ndim(mask, "mask", 2)
    truth = as_truth(mask, "mask").numpy()
    labels, num_components = ndimage.label(truth, structure=EIGHT_CONNECTED)
    component = labels[truth]  # (M,) 1 ... num_components
    areas = np.bincount(component)
    return ComponentWeights(torch.from_numpy(1.0 / areas[component]), int(num_components))
