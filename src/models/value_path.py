"""A second path beside the last blocks, whose values attend to themselves: CLIP Surgery's, and AnomalyCLIP's DPAM.

B images, P patches, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.clip.backbone import Backbone
from src.models.dual_path import run_both_paths


class Paths(NamedTuple):
    """What the tower gives, CLS first.

    Attributes:
        levels: L of (B, 1+P, W), the second path after the chosen blocks; in front of its first block, the original.
        original: (B, 1+P, W), the tower's own path after its last block.
    """

    levels: list[Tensor]
    original: Tensor


class ValuePath(nn.Module):
    """Runs the tower with a second path beside its last blocks.

    The second path starts as the input of the first of them. Each of them adds the attention of its values with
    themselves, made from the original path; there is no MLP, and it is never started afresh.

    Args:
        backbone: the frozen CLIP.
        blocks: how many of the last blocks have the second path.
        layers: block numbers in rising order, counted from 1, after which the levels are read.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> paths = ValuePath(clip, blocks=2, layers=[3, 4])(torch.zeros(1, 3, 96, 96))
        >>> [tuple(level.shape) for level in paths.levels], paths.original.shape
        ([(1, 145, 128), (1, 145, 128)], torch.Size([1, 145, 128]))
    """

    def __init__(self, backbone: Backbone, blocks: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.first = backbone.architecture.depth - blocks + 1
        self.layers = layers
        self.run_both_paths = backbone.compiled_if_asked(run_both_paths)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Paths:
        """Both paths of images (B, 3, H, W), normalised, at the architecture's size."""
        original = second = self.backbone.embed(images)  # (B, 1+P, W)
        levels = []
        for number, block in enumerate(self.backbone.blocks, start=1):
            if number < self.first:
                original = second = self.backbone.run_block(block, original)
            else:
                _, original, value_residual = self.run_both_paths(block, original)
                second = second + value_residual
            if number in self.layers:
                levels.append(second)
        return Paths(levels, original)
