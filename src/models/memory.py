"""Few-shot memory: how far a token of an image is from all tokens of the normal reference images.

B images, N tokens, C channels, L levels, P patches, K reference images, M tokens of all references.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_AT_ONCE = 8192  # tokens of the memory that are compared at once, so that a large memory takes no more room


def nearest_distance(tokens: Tensor, memory: Tensor) -> Tensor:
    """One minus the largest cosine between a token and any token of the memory, wherever in the images these lie.

    Never below 0, as rounding would have it: of tokens that are in the memory, WinCLIP+ takes the reciprocals.

    Args:
        tokens: (..., N, C), any length.
        memory: (..., M, C), any length.

    Returns:
        (..., N), in [0, 2].

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, -1.0]])
        >>> nearest_distance(tokens, memory=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([0.0000, 0.2929, 1.0000])
    """
    tokens = F.normalize(tokens, dim=-1)
    nearest = [
        (tokens @ F.normalize(some, dim=-1).mT).amax(dim=-1)  # of (..., N, M')
        for some in torch.split(memory, _AT_ONCE, dim=-2)
    ]
    return (1 - torch.stack(nearest).amax(dim=0)).clamp_min(0)


def level_distances(tokens: Tensor, references: list[Tensor]) -> Tensor:
    """Each patch's nearest distance at each level, for images whose references differ.

    Args:
        tokens: (B, L, P, C), of images.
        references: for each image (K, L, P, C), of its references.

    Returns:
        (B, L, P).

    Example:
        >>> import torch
        >>> tokens = torch.randn(2, 4, 9, 16)
        >>> level_distances(tokens, [tokens[:1], tokens[1:]]).abs().max() < 1e-6  # each is its own reference
        tensor(True)
    """
    memories = [memory.transpose(0, 1).flatten(1, 2) for memory in references]  # (L, M, C)
    return torch.stack([nearest_distance(own, memory) for own, memory in zip(tokens, memories, strict=True)])
