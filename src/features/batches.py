"""Features that are the same to the last digit whether they are computed in a run or were kept by another one.

B images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.models.method import Features, Method


def compute_features(method: Method, images: Tensor, rows: int, dtype: torch.dtype) -> Features:
    """Features of a batch's images, in a batch of `rows` images, in the type that they are kept in.

    The shape of a batch shows in the last digits, the neighbours of an image don't. So a smaller batch is filled up
    with copies of an image, and the copies' features are dropped.

    Args:
        method: its features are frozen.
        images: (B, 3, H, W), normalised.
        rows: images of a whole batch.
        dtype: `float32` or `float16`; where a value is too large for it, the batch's features stay as they are.
    """
    count = len(images)
    fill = images[-1:].expand(max(rows - count, 0), -1, -1, -1)
    features = {name: values[:count] for name, values in method.features(torch.cat([images, fill])).items()}
    kept = {name: values.to(dtype) for name, values in features.items()}
    return features if any(values.isinf().any() for values in kept.values()) else kept
