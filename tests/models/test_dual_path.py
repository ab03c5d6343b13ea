"""Both paths against open_clip's own blocks and loops by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.clip.backbone import Backbone
from src.models.dual_path import DualPath, FeatureTap, dual_attention
from src.models.sdp_plus import SDPPlus
from tests.small_clip import PROMPTS, build_backbone, random_images, random_text

EXACT = {"rtol": 1e-4, "atol": 3e-5}  # float32, in another order of sums
STAGE_LENGTH = 3  # 12 blocks, 4 stages
BOTH_TAPS = pytest.mark.parametrize("tap", ["reference", "block_output"])


@torch.no_grad()
def hook_blocks(backbone: Backbone, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into each of open_clip's blocks and comes out, while open_clip encodes."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(block: nn.Module, arguments: Any, output: Tensor) -> None:
        inputs.append(arguments[0].clone())
        outputs.append(output.clone())

    hooks = [block.register_forward_hook(keep) for block in backbone.blocks]
    backbone.clip.encode_image(images)
    for hook in hooks:
        hook.remove()
    assert len(outputs) == 12
    return inputs, outputs


def slow_attention(block: Any, tokens: Tensor, pick: Callable[[Any, Any, Any], tuple[Any, Any, Any]]) -> np.ndarray:
    """A block's attention residual, token by token; `pick` chooses query, key and value from the projected three."""
    weight, bias = block.attn.in_proj_weight.double().numpy(), block.attn.in_proj_bias.double().numpy()
    out_weight, out_bias = block.attn.out_proj.weight.double().numpy(), block.attn.out_proj.bias.double().numpy()
    normed = block.ln_1(tokens).double().numpy()
    heads, width = block.attn.num_heads, weight.shape[1]
    size = width // heads
    result = np.zeros_like(normed)
    for image, x in enumerate(normed):
        projected = x @ weight.T + bias
        q, k, v = pick(*(projected[:, i * width : (i + 1) * width] for i in range(3)))
        merged = np.zeros_like(x)
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            for token in range(len(x)):
                logits = np.array([q[token, own] @ k[other, own] for other in range(len(x))]) / np.sqrt(size)
                shares = np.exp(logits - logits.max())
                merged[token, own] = shares / shares.sum() @ v[:, own]
        result[image] = merged @ out_weight.T + out_bias
    return result * block.ls_1.gamma.double().numpy()


def value_residual(block: Any, tokens: Tensor) -> Tensor:
    """v-v attention by torch's own attention function: the value's projection in all three places."""
    width = tokens.shape[-1]
    weight, bias = block.attn.in_proj_weight[-width:], block.attn.in_proj_bias[-width:]
    normed = block.ln_1(tokens).transpose(0, 1)  # (1+P, B, W)
    mixed, _ = nn.functional.multi_head_attention_forward(
        *(normed, normed, normed, width, block.attn.num_heads),
        *(weight.repeat(3, 1), bias.repeat(3), None, None, False, 0.0),
        *(block.attn.out_proj.weight, block.attn.out_proj.bias),
        training=False,
        need_weights=False,
    )
    return block.ls_1(mixed.transpose(0, 1))


def test_both_residuals_are_the_ones_by_hand(tiny: Backbone) -> None:
    tokens = hook_blocks(tiny, random_images(2))[0][4]
    residual, values = dual_attention(tiny.blocks[4], tokens)
    expected = slow_attention(tiny.blocks[4], tokens, lambda q, k, v: (q, k, v))
    expected_values = slow_attention(tiny.blocks[4], tokens, lambda q, k, v: (v, v, v))
    np.testing.assert_allclose(residual.numpy(), expected, **EXACT)
    np.testing.assert_allclose(values.numpy(), expected_values, **EXACT)
    assert np.abs(expected - expected_values).max() > 1e-2


def test_both_residuals_are_torchs(tiny: Backbone) -> None:
    inputs, _ = hook_blocks(tiny, random_images(2))
    for block, tokens in zip(tiny.blocks, inputs, strict=True):
        residual, values = dual_attention(block, tokens)
        normed = block.ln_1(tokens)
        torch.testing.assert_close(residual, block.ls_1(block.attn(normed, normed, normed)[0]), **EXACT)
        torch.testing.assert_close(values, value_residual(block, tokens), **EXACT)


@BOTH_TAPS
def test_cls_of_the_last_level_is_open_clips_image_embedding(tiny: Backbone, tap: FeatureTap) -> None:
    images = random_images(3)
    level = DualPath(tiny, [3, 6, 9, 12], tap)(images)[-1]
    torch.testing.assert_close(level.surgery[:, 0], tiny.clip.encode_image(images), **EXACT)


def test_block_output_is_what_leaves_open_clips_blocks(tiny: Backbone) -> None:
    images = random_images(2)
    _, outputs = hook_blocks(tiny, images)
    layers = list(range(1, 13))
    for layer, level in zip(layers, DualPath(tiny, layers, "block_output")(images), strict=True):
        torch.testing.assert_close(level.original, outputs[layer - 1], **EXACT)


def test_reference_adds_the_next_blocks_attention(tiny: Backbone) -> None:
    images = random_images(2)
    _, outputs = hook_blocks(tiny, images)
    levels = DualPath(tiny, [1, 4, 8, 12], "reference")(images)
    for layer, level in zip([1, 4, 8], levels, strict=False):
        following, tokens = tiny.blocks[layer], outputs[layer - 1]
        attended = tokens + following.ls_1(following.attention(following.ln_1(tokens)))
        torch.testing.assert_close(level.original, attended, **EXACT)
        assert (level.original - tokens).abs().max() > 1e-2
    torch.testing.assert_close(levels[-1].original, outputs[-1], **EXACT)


@BOTH_TAPS
def test_second_path_sums_the_value_residuals_of_its_stage(tiny: Backbone, tap: FeatureTap) -> None:
    images, layers = random_images(2), [1, 2, 3, 4, 8, 12]
    inputs, _ = hook_blocks(tiny, images)
    for layer, level in zip(layers, DualPath(tiny, layers, tap)(images), strict=True):
        first = (layer - 1) // STAGE_LENGTH * STAGE_LENGTH
        last = first + STAGE_LENGTH if tap == "reference" else layer
        second = sum(value_residual(tiny.blocks[i], inputs[i]) for i in range(first, last))
        tokens = torch.cat([level.original[:, :1], second[:, 1:]], dim=1)
        expected = tiny.clip.visual.ln_post(tokens) @ tiny.clip.visual.proj
        torch.testing.assert_close(level.surgery, expected, **EXACT)


@BOTH_TAPS
@pytest.mark.parametrize("layers", [[3], [6, 9], [2, 11]])
def test_fewer_levels_are_the_same_levels(tiny: Backbone, tap: FeatureTap, layers: list[int]) -> None:
    images = random_images(2)
    everything = DualPath(tiny, range(1, 13), tap)(images)
    for layer, level in zip(layers, DualPath(tiny, layers, tap)(images), strict=True):
        assert torch.equal(level.original, everything[layer - 1].original)
        assert torch.equal(level.surgery, everything[layer - 1].surgery)


def test_blocks_behind_the_last_level_are_left_out(tiny: Backbone) -> None:
    ran: list[int] = []
    hooks = [
        block.attn.out_proj.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(tiny.blocks, start=1)
    ]
    DualPath(tiny, [2, 5], "block_output")(random_images(1))
    for hook in hooks:
        hook.remove()
    assert max(ran) == 5


@BOTH_TAPS
def test_an_image_does_not_depend_on_its_batch(tiny: Backbone, tap: FeatureTap) -> None:
    path, images = DualPath(tiny, [3, 7, 12], tap), random_images(4)
    together = path(images)
    for index in range(4):
        for level, alone in zip(together, path(images[index : index + 1]), strict=True):
            torch.testing.assert_close(level.original[index], alone.original[0], **EXACT)
            torch.testing.assert_close(level.surgery[index], alone.surgery[0], **EXACT)


def test_nothing_of_the_frozen_tower_is_kept_for_gradients(tiny: Backbone) -> None:
    images = random_images(1).requires_grad_()
    (level,) = DualPath(tiny, [12], "reference")(images)
    assert not level.original.requires_grad
    assert not level.surgery.requires_grad


def test_bfloat16_autocast_gives_float32_close_to_float32(tiny: Backbone) -> None:
    path, images = DualPath(tiny, [3, 12], "reference"), random_images(2)
    exact = path(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = path(images)
    for one, other in zip(exact, rounded, strict=True):
        for a, b in zip(one, other, strict=True):
            assert b.dtype == torch.float32
            assert not torch.equal(a, b)
            assert ((a - b).norm() / a.norm()).item() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_compiled_blocks_give_the_same_maps(precision: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(tmp_path)
    text = random_text(3)
    maps = []
    for compiled in (False, True):
        backbone.compiled = compiled
        model = SDPPlus(backbone, PROMPTS, feature_layers=[3, 7, 12], smoothing_sigma=2, representative="mean")
        torch.manual_seed(1)
        for parameter in model.projections.parameters():
            nn.init.normal_(parameter, std=0.1)
        with torch.no_grad(), torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            maps.append([model(random_images(3), text).anomaly_map, model(random_images(2), text[:2]).anomaly_map])
    for eager, fused in zip(*maps, strict=True):
        exact = {"rtol": 1e-4, "atol": 1e-5} if precision == torch.float32 else {"rtol": 0, "atol": 0.1}
        torch.testing.assert_close(fused, eager, **exact)


def test_unknown_tap_and_bad_levels_are_refused(tiny: Backbone) -> None:
    with pytest.raises(ValueError, match=r"feature_tap must be one of reference, block_output, but got 'after'"):
        DualPath(tiny, [3], "after")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"from 1 to 12"):
        DualPath(tiny, [13], "reference")
