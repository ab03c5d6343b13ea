"""The staged dual path: open_clip's image tower with a second, v-v attention path beside it (CLIP-AD, section 3.2).

B images, P patches, W width, D embedding, H heads, E = W / H. Block numbers count from 1, as in `feature_layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.errors import UserError
from src.models.architecture import STAGES, check_feature_layers
from src.models.backbone import Backbone

FeatureTap = Literal["reference", "block_output"]
FEATURE_TAPS = ("reference", "block_output")


class Level(NamedTuple):
    """The tokens read at one level; CLS is token 0 of both.

    Attributes:
        original: (B, 1+P, W), the tower's own path, without final norm and projection.
        surgery: (B, 1+P, D), the second path's patch tokens behind the original path's CLS, normed and projected.
    """

    original: Tensor
    surgery: Tensor


class Tap(NamedTuple):
    """Where a level's tokens are read.

    Attributes:
        original_block: the block whose state of the original path is read.
        original_point: `attended` (after its attention, before its MLP) or `output`.
        surgery_block: the block after which the second path is read.
    """

    original_block: int
    original_point: str
    surgery_block: int


def _tap(layer: int, depth: int, feature_tap: FeatureTap) -> Tap:
    """The reading points of level `layer` of `depth` blocks; see `DualPath` for the two meanings."""
    if feature_tap == "block_output":
        return Tap(layer, "output", layer)
    stage_length = depth // STAGES
    stage_end = -(-layer // stage_length) * stage_length
    return Tap(layer, "output", stage_end) if layer == depth else Tap(layer + 1, "attended", stage_end)


class DualPath(nn.Module):
    """Runs both paths and reads them at the chosen levels.

    The second path gathers, block by block, attention of the values with themselves; it starts afresh at the first
    block of each of the four stages, has no MLP, and feeds on the original path only.

    `feature_tap` says what "after block n" means. `block_output` is the paper's equations: the sums up to and with
    block n. `reference` is the authors' code, whose published weights and numbers carry its side effect: tokens kept
    at a level are changed in place by the blocks that follow, so the original tokens hold the attention residual of
    block n+1 as well, and the second path holds its whole stage. The last block has nothing after it.

    Args:
        backbone: the frozen CLIP.
        feature_layers: block numbers in rising order, 1 to depth.
        feature_tap: `reference` or `block_output`.

    Raises:
        UserError: a block number out of range, an unknown tap.
    """

    def __init__(self, backbone: Backbone, feature_layers: Sequence[int], feature_tap: FeatureTap) -> None:
        super().__init__()
        check_feature_layers(feature_layers, backbone.architecture)
        if feature_tap not in FEATURE_TAPS:
            raise UserError(f"model.feature_tap must be one of {', '.join(FEATURE_TAPS)}, but got '{feature_tap}'")
        self.backbone = backbone
        self.taps = [_tap(layer, backbone.architecture.depth, feature_tap) for layer in feature_layers]
        self._wanted = {(t.original_point, t.original_block) for t in self.taps}
        self._wanted |= {("surgery", t.surgery_block) for t in self.taps}

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Level]:
        """Tokens of every level.

        Args:
            images: (B, 3, H, W), normalised, at the architecture's size.

        Returns:
            One `Level` a feature layer, in their order, in float32.
        """
        stage_length = self.backbone.architecture.depth // STAGES
        last_block = max(max(tap.original_block, tap.surgery_block) for tap in self.taps)
        kept: dict[tuple[str, int], Tensor] = {}
        tokens = self.backbone.embed(images)  # (B, 1+P, W)
        second = torch.zeros_like(tokens)
        for number, block in enumerate(self.backbone.blocks[:last_block], start=1):
            residual, value_residual = dual_attention(block, tokens)
            starts_stage = (number - 1) % stage_length == 0
            second = value_residual if starts_stage else second + value_residual
            attended = tokens + residual
            tokens = attended + block.ls_2(block.mlp(block.ln_2(attended)))
            for point, value in (("attended", attended), ("output", tokens), ("surgery", second)):
                if (point, number) in self._wanted:
                    kept[point, number] = value
        return [
            self._level(kept[t.original_point, t.original_block], kept["surgery", t.surgery_block]) for t in self.taps
        ]

    def _level(self, original: Tensor, second: Tensor) -> Level:
        """Give the second path the original path's CLS and bring it into the joint embedding."""
        surgery = torch.cat([original[:, :1], second[:, 1:]], dim=1)  # (B, 1+P, W)
        return Level(original.float(), self.backbone.project(surgery).float())


def dual_attention(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A block's attention residual, and the one of its values attending to themselves, through the same projections.

    Args:
        block: one of open_clip's residual attention blocks.
        tokens: (B, 1+P, W), the original path before the block.

    Returns:
        The two residuals, each (B, 1+P, W).
    """
    attention = block.attn
    batch, length, width = tokens.shape
    projected = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    heads = projected.view(batch, length, 3, attention.num_heads, -1)  # (B, 1+P, 3, H, E)
    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, 1+P, E)

    def residual(q: Tensor, k: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, value)  # (B, H, 1+P, E)
        merged = mixed.transpose(1, 2).reshape(batch, length, width)
        out: Tensor = block.ls_1(attention.out_proj(merged))
        return out

    return residual(query, key), residual(value, value)
