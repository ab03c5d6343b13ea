"""Trained linear projections: a level's patch tokens -> joint embedding -> how anomalous each pixel is.

B images, L levels, P = g * g patches, W width, D embedding, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.models.maps import aligned_maps
from src.models.similarity import CLIP_SCALE

_SHORTEST = 1e-12  # a token's length is not taken as less, as in torch's normalize


class LevelProjections(nn.Module):
    """Brings each level's patch tokens into the joint embedding by a projection of its own.

    The list is called `fc`, so that its state has the names of the authors' checkpoint files.

    Args:
        levels: L.
        width: channels of the tower's tokens (W).
        embed_dim: channels of the joint embedding (D).

    Example:
        >>> import torch
        >>> projected = LevelProjections(levels=2, width=8, embed_dim=4)(torch.zeros(1, 2, 16, 8))
        >>> [tuple(tokens.shape) for tokens in projected]
        [(1, 16, 4), (1, 16, 4)]
    """

    def __init__(self, levels: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(width, embed_dim) for _ in range(levels))

    def forward(self, original: Tensor) -> list[Tensor]:
        """Patch tokens (B, L, P, W) -> L tensors (B, P, D), of any length."""
        return [fc(tokens) for fc, tokens in zip(self.fc, original.unbind(1), strict=True)]


def level_margins(projected: Sequence[Tensor], text: Tensor, size: int) -> Tensor:
    """Each level's anomalous logit less its normal one, at the image's size.

    CLIP-AD and APRIL-GAN bring two logits to the image's size, with their corners aligned, and take their softmax. Of
    two classes that is the sigmoid of the difference, and interpolation is linear: one value a pixel is enough.

    Args:
        projected: L of patch tokens (B, P, D), of any length.
        text: (B, D, 2).
        size: of the image, in pixels.

    Returns:
        (B, L, size, size).

    Example:
        >>> import torch
        >>> text = torch.tensor([[[1.0, 0.99], [0.0, 0.141]]])
        >>> level_margins([torch.tensor([[[3.0, 0.0]]])], text, size=1)  # 100 * (0.99 - 1.0)
        tensor([[[[-1.0000]]]])
    """
    direction = CLIP_SCALE * (text[..., 1:] - text[..., :1])  # (B, D, 1)
    margins = [tokens @ direction / tokens.norm(dim=-1, keepdim=True).clamp_min(_SHORTEST) for tokens in projected]
    return aligned_maps(torch.cat(margins, dim=-1).mT, size)
