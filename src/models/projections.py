"""The trainable part of SDP+: one linear projection a level.

B images, L levels, P patches, W width, D embedding.
"""

from __future__ import annotations

from torch import Tensor, nn


class LevelProjections(nn.Module):
    """Brings each level's original patch tokens into the joint embedding (CLIP-AD, section 3.3).

    The list is called `fc`, so that its state has the names of the reference's checkpoint files.

    Args:
        levels: number of levels.
        width: channels of the tower's tokens (W).
        embed_dim: channels of the joint embedding (D).
    """

    def __init__(self, levels: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(width, embed_dim) for _ in range(levels))

    def forward(self, original: Tensor) -> list[Tensor]:
        """Project patch tokens (B, L, P, W), each level by its own: L tensors (B, P, D), of any length."""
        return [fc(tokens) for fc, tokens in zip(self.fc, original.unbind(1), strict=True)]
