"""The trainable part of SDP+: one linear projection a level.

B images, P patches, W width, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from src.models.dual_path import Level


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

    def forward(self, levels: Sequence[Level]) -> list[Tensor]:
        """Unit-length patch tokens of each level: (B, P, D)."""
        return [F.normalize(fc(level.original[:, 1:]), dim=-1) for fc, level in zip(self.fc, levels, strict=True)]
