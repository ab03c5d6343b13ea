"""One block of the dual path: open_clip's own attention and MLP, and beside them attention of the values.

B images, P patches, W width, H heads, E = W / H.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F


class BlockPlan(NamedTuple):
    """What is needed of a block.

    Attributes:
        starts_stage: whether the second path starts afresh.
        second: whether the second path is read here or later in the stage.
        only_cls: whether no patch token of the original path is needed.
        mlp: whether the original path is needed behind the MLP.
    """

    starts_stage: bool
    second: bool
    only_cls: bool
    mlp: bool


class BlockState(NamedTuple):
    """What a block leaves.

    Attributes:
        attended: (B, 1+P, W), the original path after the attention; (B, 1, W) where only CLS is needed.
        output: of the same shape, after the MLP, if that is needed.
        second: (B, 1+P, W), the second path, if that is needed.
    """

    attended: Tensor
    output: Tensor
    second: Tensor | None


def run_block(block: Any, plan: BlockPlan, tokens: Tensor, second: Tensor | None) -> BlockState:
    """Both paths through one block.

    Args:
        block: one of open_clip's residual attention blocks.
        plan: what of it is needed.
        tokens: (B, 1+P, W), the original path before the block.
        second: (B, 1+P, W), the second path's sum so far; None where it starts.
    """
    residual, value_residual = dual_attention(block, tokens, with_values=plan.second, only_cls=plan.only_cls)
    if second is not None and value_residual is not None:
        value_residual = second + value_residual
    attended = tokens[:, : residual.shape[1]] + residual
    output = attended + block.ls_2(block.mlp(block.ln_2(attended))) if plan.mlp else attended
    return BlockState(attended, output, value_residual)


def dual_attention(
    block: Any, tokens: Tensor, *, with_values: bool = True, only_cls: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A block's attention residual, and the one of its values attending to themselves, through the same projections.

    Args:
        block: one of open_clip's residual attention blocks.
        tokens: (B, 1+P, W), the original path before the block.
        with_values: whether the second residual is needed.
        only_cls: whether only the CLS token's first residual is needed.

    Returns:
        The two residuals, each (B, 1+P, W); with `only_cls` the first is (B, 1, W), without `with_values` the second
        is None.
    """
    attention = block.attn
    batch, _, width = tokens.shape
    normed = block.ln_1(tokens)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias  # (3 W, W), (3 W,): query, key, value
    if only_cls:
        query = F.linear(normed[:, :1], weight[:width], bias[:width])  # (B, 1, W)
        key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)  # each (B, 1+P, W)
    else:
        query, key, value = F.linear(normed, weight, bias).chunk(3, dim=-1)  # each (B, 1+P, W)
    query, key, value = (
        part.view(batch, -1, attention.num_heads, width // attention.num_heads).transpose(1, 2)  # (B, H, 1+P, E)
        for part in (query, key, value)
    )

    def residual(q: Tensor, k: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, value)  # (B, H, 1+P, E)
        out: Tensor = block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))
        return out

    return residual(query, key), residual(value, value) if with_values else None
