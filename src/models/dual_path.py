"""The staged dual path: open_clip's image tower with a second, v-v attention path beside it (CLIP-AD, section 3.2).

B images, P patches, W width, D embedding, H heads, E = W / H. Blocks are counted from 1, as in `feature_layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.clip.architecture import STAGES, check_feature_layers, check_stages
from src.clip.backbone import Backbone

FeatureTap = Literal["reference", "block_output"]
FEATURE_TAPS = get_args(FeatureTap)


class Level(NamedTuple):
    """The tokens read at one level; CLS is token 0 of both.

    Attributes:
        original: (B, 1+P, W), the tower's own path, without final norm and projection.
        surgery: (B, 1+P, D), the second path's patch tokens behind the original path's CLS, normed and projected.
    """

    original: Tensor
    surgery: Tensor


class Block(NamedTuple):
    """What a block computes.

    Attributes:
        attended: (B, 1+P, W), the original path after the attention.
        output: (B, 1+P, W), the original path after the MLP.
        value_residual: (B, 1+P, W), what the block adds to the second path.
    """

    attended: Tensor
    output: Tensor
    value_residual: Tensor


class DualPath(nn.Module):
    """Runs both paths through the tower and reads them at the chosen levels.

    The second path sums, block by block, attention of the values with themselves. It starts afresh at the first block
    of each of the four stages, has no MLP, and reads the original path only.

    `feature_tap` says what "after block n" means. `block_output` is the paper's equations: the sums up to and with
    block n. `reference` is the authors' code, whose published weights and numbers carry its side effect: the blocks
    that follow change in place the tokens that a level has kept. So the original tokens hold the attention residual of
    block n+1 as well, and the second path holds its whole stage. The last block has nothing after it.

    Args:
        backbone: the frozen CLIP.
        feature_layers: block numbers in rising order, 1 to depth.
        feature_tap: `reference` or `block_output`.

    Raises:
        ValueError: the depth has no four equal stages, a block number is out of range, or the tap is unknown.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> first, last = DualPath(clip, feature_layers=[1, 4], feature_tap="reference")(torch.zeros(1, 3, 96, 96))
        >>> last.original.shape, last.surgery.shape  # CLS and 144 patches; W = 128, D = 96
        (torch.Size([1, 145, 128]), torch.Size([1, 145, 96]))
    """

    def __init__(self, backbone: Backbone, feature_layers: Sequence[int], feature_tap: FeatureTap) -> None:
        super().__init__()
        check_stages(backbone.architecture)
        check_feature_layers(feature_layers, backbone.architecture)
        if feature_tap not in FEATURE_TAPS:
            raise ValueError(f"feature_tap must be one of {', '.join(FEATURE_TAPS)}, but got '{feature_tap}'")
        self.backbone = backbone
        self.stage_length = backbone.architecture.depth // STAGES
        self.read_at = [self._points(layer, feature_tap) for layer in feature_layers]
        self.run_both_paths = backbone.compiled_if_asked(run_both_paths)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Level]:
        """Tokens of every level.

        Args:
            images: (B, 3, H, W), normalised, at the architecture's size.

        Returns:
            One `Level` a feature layer, in their order, in float32.
        """
        read = {point for points in self.read_at for point in points}
        kept: dict[tuple[str, int], Tensor] = {}
        tokens = self.backbone.embed(images)  # (B, 1+P, W)
        second = torch.zeros_like(tokens)
        last = max(number for _, number in read)
        for number, block in enumerate(self.backbone.blocks[:last], start=1):
            if (number - 1) % self.stage_length == 0:
                second = torch.zeros_like(tokens)
            attended, tokens, value_residual = self.run_both_paths(block, tokens)
            second = second + value_residual
            states = {"attended": attended, "output": tokens, "second": second}
            kept |= {(name, number): state for name, state in states.items() if (name, number) in read}
        return [self._level(kept[at_original], kept[at_second]) for at_original, at_second in self.read_at]

    def _points(self, layer: int, feature_tap: FeatureTap) -> tuple[tuple[str, int], tuple[str, int]]:
        """Where a level's original tokens and its second path are read: the state's name and the block's number."""
        if feature_tap == "block_output":
            return ("output", layer), ("second", layer)
        stage_end = -(-layer // self.stage_length) * self.stage_length
        is_last = layer == self.stage_length * STAGES
        return ("output", layer) if is_last else ("attended", layer + 1), ("second", stage_end)

    def _level(self, original: Tensor, second: Tensor) -> Level:
        """Give the second path the original path's CLS and bring it into the joint embedding."""
        surgery = torch.cat([original[:, :1], second[:, 1:]], dim=1)  # (B, 1+P, W)
        return Level(original.float(), self.backbone.project(surgery).float())


def run_both_paths(block: Any, tokens: Tensor) -> Block:
    """Both paths through one of open_clip's residual attention blocks: tokens (B, 1+P, W) of the original path in.

    Example:
        >>> import torch
        >>> from open_clip.transformer import ResidualAttentionBlock
        >>> block = run_both_paths(ResidualAttentionBlock(d_model=8, n_head=2), torch.zeros(1, 5, 8))
        >>> block.output.shape, block.value_residual.shape
        (torch.Size([1, 5, 8]), torch.Size([1, 5, 8]))
    """
    residual, value_residual = dual_attention(block, tokens)
    attended = tokens + residual
    return Block(attended, attended + block.ls_2(block.mlp(block.ln_2(attended))), value_residual)


def dual_attention(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A block's attention residual, and that of its values attending to themselves, through the same projections.

    Args:
        block: one of open_clip's residual attention blocks.
        tokens: (B, 1+P, W), the original path before the block.

    Returns:
        softmax(q k^T / sqrt(E)) v and softmax(v v^T / sqrt(E)) v, after the block's out-projection: (B, 1+P, W) each.

    Example:
        >>> import torch
        >>> from open_clip.transformer import ResidualAttentionBlock
        >>> tokens = torch.ones(1, 5, 8)  # all the same, so both paths mix the same values
        >>> residual, value_residual = dual_attention(ResidualAttentionBlock(d_model=8, n_head=2), tokens)
        >>> residual.shape, torch.allclose(residual, value_residual, atol=1e-6)
        (torch.Size([1, 5, 8]), True)
    """
    attention = block.attn
    qkv = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)  # (B, 1+P, 3 W)
    heads = qkv.view(*tokens.shape[:2], 3, attention.num_heads, -1)  # (B, 1+P, 3, H, E)
    query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, H, 1+P, E)

    def residual(q: Tensor, k: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, value)  # (B, H, 1+P, E)
        out: Tensor = block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))
        return out

    return residual(query, key), residual(value, value)
