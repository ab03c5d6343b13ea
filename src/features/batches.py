"""Features that are the same to the last digit whether they are computed in a run or were kept by another one.

B images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.models.method import Features, Method


def compute_features(method: Method, images: Tensor, rows: int, dtype: torch.dtype) -> Features:
    """Features of a batch's images, in a batch of `rows` images, in the type that they are kept in.

    The last digits of an image's features depend on how many images its batch has, but not on which ones. So a smaller
    batch is filled up with copies of an image, and the copies' features are dropped.

    Args:
        method: a method with frozen features.
        images: (B, 3, H, W), normalised.
        rows: number of images of a whole batch.
        dtype: `float32` or `float16`; where a value is too large for it, the batch's features stay as they are.

    Example:
        >>> from src.clip.backbone import Backbone, find_backbone
        >>> from src.models.prompts import Prompts
        >>> from src.models.sdp import SDP
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = SDP(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> features = compute_features(method, torch.zeros(1, 3, 96, 96), rows=4, dtype=torch.float16)
        >>> features["surgery"].shape, features["surgery"].dtype  # 4 levels, CLS and 144 patches, 96 channels
        (torch.Size([1, 4, 145, 96]), torch.float16)
    """
    count = len(images)
    fill = images[-1:].expand(max(rows - count, 0), -1, -1, -1)
    features = {name: values[:count] for name, values in method.features(torch.cat([images, fill])).items()}
    kept = {name: values.to(dtype) for name, values in features.items()}
    return features if any(values.isinf().any() for values in kept.values()) else kept
