# N = test images of one category
"""Set-level fusion of the two image scores."""

import torch
from torch import Tensor

from src.metrics.functional.arguments import as_scores, check_ndim, check_shape


def fuse_image_scores(cls_score: Tensor, map_max: Tensor) -> Tensor:
    """Min-max each term over the images of one category and add the two.

    Transductive: an image's score depends on the other test images, so it belongs to evaluation, never to prediction
    for a single image. A term that is constant over the category ranks nothing and counts as 0. CLIP-AD,
    https://arxiv.org/abs/2311.00453, as its public code does.

    Args:
        cls_score: (N,) floating point, the classification score of each image.
        map_max: (N,) floating point, the maximum of each image's smoothed map.

    Returns:
        (N,) float64 in [0, 2].

    Raises:
        ValueError: if a score is not finite, or shapes or dtypes don't fit.
    """
    cls_score, map_max = as_scores(cls_score, "cls_score"), as_scores(map_max, "map_max")
    check_ndim(cls_score, "cls_score", 1)
    check_shape(map_max, "map_max", cls_score, "cls_score")
    return _min_max(cls_score.double()) + _min_max(map_max.double())


def _min_max(scores: Tensor) -> Tensor:
    if scores.numel() == 0:
        return scores
    low, high = scores.aminmax()
    return (scores - low) / (high - low) if high > low else torch.zeros_like(scores)
