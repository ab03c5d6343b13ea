"""The baselines against plain loops, and their settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.clip.backbone import Backbone
from src.models.anomalyclip import AnomalyCLIP
from src.models.april_gan import AprilGAN
from src.models.clip import CLIP
from src.models.clip_surgery import CLIPSurgery
from src.models.maps import aligned_maps
from src.models.memory import level_distances, nearest_distance
from src.models.method import Method
from src.models.sdp import SDP
from src.models.sdp_plus import SDPPlus
from src.models.value_path import ValuePath
from src.models.winclip import WinCLIP, mean_over_windows
from src.models.winclip_plus import WinCLIPPlus
from tests.small_clip import PROMPTS, build_backbone, random_images, random_text

CLOSE = {"rtol": 0, "atol": 1e-5}


# WinCLIP


@torch.no_grad()
def test_windows_are_images_of_their_own(tiny: Backbone) -> None:
    """Each window alone, by open_clip's own tower: embedding, norm, blocks, norm and projection one after the other."""
    images = random_images(2)
    visual = tiny.clip.visual
    patches = visual.conv1(images).flatten(2).mT  # (2, 16, W)
    positions = visual.positional_embedding
    features = WinCLIP(tiny, PROMPTS, scales=[2, 3]).features(images)
    for scale in (2, 3):
        side = 4 - scale + 1
        for row in range(2):
            for number in range(side * side):
                top, left = divmod(number, side)
                inside = [(top + y) * 4 + left + x for y in range(scale) for x in range(scale)]
                tokens = [visual.class_embedding + positions[0]]
                tokens += [patches[row, patch] + positions[1 + patch] for patch in inside]
                output = visual.transformer(visual.ln_pre(torch.stack(tokens)[None]))
                expected = visual.ln_post(output[0, 0]) @ visual.proj
                torch.testing.assert_close(features[f"window_{scale}"][row, number], expected, **CLOSE)


@torch.no_grad()
def test_the_images_embedding_is_open_clips(tiny: Backbone) -> None:
    images = random_images(2)
    torch.testing.assert_close(
        WinCLIP(tiny, PROMPTS).features(images)["image"], tiny.clip.encode_image(images), **CLOSE
    )


@pytest.mark.parametrize(("grid", "scale"), [(4, 1), (5, 2), (5, 3), (4, 4)])
def test_harmonic_mean_of_the_windows_that_contain_a_patch(grid: int, scale: int) -> None:
    side = grid - scale + 1
    scores = torch.rand(2, side * side, generator=torch.Generator().manual_seed(0)) + 0.01
    found = mean_over_windows(scores, scale)
    for row in range(2):
        for y in range(grid):
            for x in range(grid):
                values = [
                    float(scores[row, top * side + left])
                    for top in range(side)
                    for left in range(side)
                    if top <= y < top + scale and left <= x < left + scale
                ]
                expected = len(values) / sum(1 / value for value in values)
                assert float(found[row, y * grid + x]) == pytest.approx(expected, abs=1e-6)


def test_a_score_of_nothing_is_nothing_where_its_window_lies() -> None:
    found = mean_over_windows(torch.tensor([[0.0, 0.5, 0.5, 0.5]]), scale=2)  # of a grid of three
    assert found.view(3, 3)[:2, :2].eq(0).all()
    assert found.view(3, 3)[2].allclose(torch.tensor(0.5))


# Few-shot


def test_nearest_distance_is_to_the_nearest_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, 4, 8, generator=generator)  # two images, three levels, four patches
    references = [torch.randn(count, 3, 4, 8, generator=generator) for count in (1, 2)]
    found = level_distances(tokens, references)
    for image in range(2):
        for level in range(3):
            for patch in range(4):
                own = tokens[image, level, patch]
                cosines = [
                    float(F.cosine_similarity(own, other, dim=0)) for one in references[image] for other in one[level]
                ]
                assert float(found[image, level, patch]) == pytest.approx(1 - max(cosines), abs=1e-6)


def test_nothing_is_further_than_the_nearest_of_many() -> None:
    """A memory of more tokens than are compared at once; the one that is nearest lies behind the first of them."""
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(20_000, 4, generator=generator)
    tokens = torch.cat([memory[[0, 12_345, 19_999]], torch.randn(2, 4, generator=generator)])
    expected = 1 - F.cosine_similarity(tokens[:, None], memory, dim=-1).amax(dim=1)
    torch.testing.assert_close(nearest_distance(tokens, memory), expected.clamp_min(0), **CLOSE)


@torch.no_grad()
def test_an_image_that_is_a_reference_is_as_near_as_can_be(tiny: Backbone) -> None:
    """A cosine a little above 1 would make reciprocals of both signs, which cancel: a map of anything but zeros."""
    images = random_images(4)
    method = WinCLIPPlus(tiny, PROMPTS)
    features = method.features(images)
    for row in range(4):
        own = {name: values[row] for name, values in features.items()}
        association = method.association(own, features)
        assert association.ge(0).all()
        assert association.lt(1e-6).all()


def few_shot(method: Any, images: Tensor, good: Tensor, text: Tensor) -> tuple[Any, Any]:
    features, references = method.features(images), method.features(good)
    return method.score(features, text), method.score(features, text, [references] * len(images))


def test_the_memory_adds_its_map_before_smoothing(tiny: Backbone) -> None:
    """SDP+'s own extension, with the plain pieces: no smoothing, so that the difference is the memory's map."""
    images, good, text = random_images(2), random_images(3, seed=9), random_text(2)
    method = SDPPlus(tiny, PROMPTS, smoothing_sigma=0, representative="mean")
    zero_shot, with_good = few_shot(method, images, good, text)
    levels, memory = method.features(images)["original"], method.features(good)["original"]
    expected = torch.zeros(2, 32, 32)
    for level in range(levels.shape[1]):
        distances = nearest_distance(levels[:, level], memory[:, level].flatten(0, 1))  # (2, P)
        expected += aligned_maps(distances[:, None], 32)[:, 0]
    torch.testing.assert_close(with_good.anomaly_map - zero_shot.anomaly_map, expected, **CLOSE)
    assert torch.equal(with_good.terms["cls_score"], zero_shot.terms["cls_score"])


def test_memory_layers_of_their_own(tiny: Backbone) -> None:
    images, good, text = random_images(2), random_images(2, seed=9), random_text(2)
    torch.manual_seed(0)
    method = AprilGAN(tiny, PROMPTS, feature_layers=[3, 12], memory_layers=[6])
    features = method.features(images)
    assert {name: values.shape[1] for name, values in features.items() if name != "image"} == {"tokens": 2, "memory": 1}
    zero_shot, with_good = few_shot(method, images, good, text)
    tokens, memory = (tiny.block_outputs(some, [6])[6][:, 1:] for some in (images, good))
    expected = aligned_maps(nearest_distance(tokens, memory.flatten(0, 1))[:, None], 32)[:, 0]
    torch.testing.assert_close(with_good.anomaly_map - zero_shot.anomaly_map, expected, **CLOSE)


def test_images_of_two_categories_have_references_of_their_own(tiny: Backbone) -> None:
    images, text = random_images(2), random_text(2)
    good = [random_images(count, seed=seed) for count, seed in ((1, 5), (3, 6))]
    torch.manual_seed(0)
    for method in (WinCLIPPlus(tiny, PROMPTS), AprilGAN(tiny, PROMPTS), SDPPlus(tiny, PROMPTS, representative="mean")):
        features = method.features(images)
        references = [method.features(own) for own in good]
        together = method.score(features, text, references)
        for row in range(2):
            alone = {name: values[row : row + 1] for name, values in features.items()}
            one = method.score(alone, text[row : row + 1], references[row : row + 1])
            torch.testing.assert_close(together.anomaly_map[row], one.anomaly_map[0], **CLOSE)
            torch.testing.assert_close(together.single_score[row], one.single_score[0], **CLOSE)


# CLIP and CLIP Surgery


@torch.no_grad()
def test_clip_asks_each_patch(tiny: Backbone) -> None:
    images, text = random_images(2), random_text(2)
    scores = CLIP(tiny, PROMPTS, smoothing_sigma=0)(images, text)
    tokens = F.normalize(tiny.image_tokens(images), dim=-1)
    probability = (100 * tokens @ text).softmax(dim=-1)[..., 1]  # (2, 17)
    torch.testing.assert_close(scores.terms["cls_score"], probability[:, 0], **CLOSE)
    torch.testing.assert_close(scores.single_score, probability[:, 0], **CLOSE)
    grid = probability[:, 1:].view(2, 1, 4, 4)
    expected = F.interpolate(grid, size=32, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(scores.anomaly_map, expected, **CLOSE)


def value_attention(block: Any, tokens: Tensor) -> Tensor:
    """softmax(v v^T / sqrt(head size)) v, head by head, then the out-projection: (B, N, W) -> (B, N, W)."""
    width, heads = tokens.shape[-1], block.attn.num_heads
    size = width // heads
    weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
    values = block.ln_1(tokens) @ weight.T + bias
    mixed = []
    for head in range(heads):
        own = values[..., head * size : (head + 1) * size]
        mixed.append((own @ own.mT / math.sqrt(size)).softmax(dim=-1) @ own)
    residual: Tensor = block.ls_1(block.attn.out_proj(torch.cat(mixed, dim=-1)))
    return residual


@torch.no_grad()
def test_the_second_path_starts_as_the_input_of_its_first_block(tiny: Backbone) -> None:
    images = random_images(2)
    levels, original = ValuePath(tiny, blocks=5, layers=[4, 8, 12])(images)
    tokens = second = tiny.embed(images)
    expected = []
    for number, block in enumerate(tiny.blocks, start=1):
        if number == 8:  # the first of the last five
            second = tokens
        if number >= 8:
            second = second + value_attention(block, tokens)
        tokens = block(tokens)
        if number in (4, 8, 12):
            expected.append(second if number >= 8 else tokens)
    for found, one in zip([*levels, original], [*expected, tokens], strict=True):
        torch.testing.assert_close(found, one, **CLOSE)


@torch.no_grad()
def test_clip_surgery_by_its_products(tiny: Backbone) -> None:
    """The products of tokens and texts channel by channel, weighted and less their mean, as the authors write them."""
    images, text = random_images(2), random_text(2)
    method = CLIPSurgery(tiny, PROMPTS, smoothing_sigma=0)
    (second,), original = ValuePath(tiny, blocks=6, layers=[12])(images)
    tokens = F.normalize(tiny.project(torch.cat([original[:, :1], second[:, 1:]], dim=1)), dim=-1)
    shares = (2 * tokens[:, :1] @ text).softmax(dim=-1)  # (2, 1, 2)
    products = tokens[:, :, :, None] * text[:, None] * (shares / shares.mean(dim=-1, keepdim=True))[:, :, None]
    similarity = (products - products.mean(dim=-1, keepdim=True)).sum(dim=2)[:, 1:, 1]  # (2, 16)
    expected = F.interpolate(similarity.view(2, 1, 4, 4), size=32, mode="bilinear", align_corners=False)[:, 0]
    scores = method(images, text)
    torch.testing.assert_close(scores.anomaly_map, expected, **CLOSE)
    probability = (100 * tokens[:, 0, None] @ text).softmax(dim=-1)[:, 0, 1]
    torch.testing.assert_close(scores.single_score, probability + expected.amax(dim=(1, 2)), **CLOSE)


# Settings


@pytest.mark.parametrize("layers", [10, 5, 1])
def test_only_sdp_needs_four_equal_stages(layers: int, tmp_path: Any) -> None:
    backbone = build_backbone(tmp_path, layers=layers)
    images, text = random_images(1), random_text(1)
    methods: list[Method] = [CLIP(backbone, PROMPTS), CLIPSurgery(backbone, PROMPTS), WinCLIP(backbone, PROMPTS)]
    for method in [*methods, AprilGAN(backbone, PROMPTS), AnomalyCLIP(backbone, PROMPTS)]:
        assert method(images, text).anomaly_map.shape == (1, 32, 32)
    for kind in (SDP, SDPPlus):
        with pytest.raises(
            ValueError, match=rf"^feature_layers end 4 equal stages, but backbone tiny has {layers} blocks"
        ):
            kind(backbone, PROMPTS)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (WinCLIP, {"scales": [5]}, "scales must be a list of numbers from 1 to 4"),
        (WinCLIP, {"scales": [0]}, "scales must be a list of numbers from 1 to 4"),
        (WinCLIP, {"scales": [3, 2]}, "scales must rise"),
        (WinCLIP, {"scales": "23"}, "scales must be a list"),
        (WinCLIP, {"scales": []}, "scales must be a list"),
        (WinCLIP, {"smoothing_sigma": -1}, "smoothing_sigma must be 0 or more"),
        (CLIP, {"representative": "median"}, "representative must be one of"),
        (CLIPSurgery, {"surgery_blocks": 13}, "surgery_blocks must be from 1 to 12"),
        (CLIPSurgery, {"surgery_blocks": 0}, "surgery_blocks must be from 1 to 12"),
        (AprilGAN, {"feature_layers": []}, "feature_layers must be a list of block numbers from 1 to 12"),
        (AprilGAN, {"memory_layers": [13]}, "memory_layers must be a list of block numbers from 1 to 12"),
        (AprilGAN, {"focal_weight": -1}, "focal_weight and dice_weight must be 0 or more"),
        (AnomalyCLIP, {"n_ctx": 0}, "n_ctx must be from 1 to"),
        (AnomalyCLIP, {"n_ctx": 75}, "n_ctx must be from 1 to"),
        (AnomalyCLIP, {"t_n_ctx": 13}, "t_n_ctx must be from 1 to n_ctx, which is 12"),
        (AnomalyCLIP, {"depth": 0}, "depth must be 1 or more"),
        (AnomalyCLIP, {"dpam_layer": 1}, "dpam_layer must be from 2 to 13"),
        (AnomalyCLIP, {"dpam_layer": 14}, "dpam_layer must be from 2 to 13"),
        (AnomalyCLIP, {"feature_layers": [13]}, "feature_layers must be a list of block numbers from 1 to 12"),
    ],
)
def test_a_setting_that_can_not_be_is_named(
    tiny: Backbone, method: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        method(tiny, PROMPTS, **settings)


def test_the_longest_prompts_that_fit(tiny: Backbone) -> None:
    """The end of `X ... X damaged object.` must be within the 77 tokens."""
    with pytest.raises(ValueError, match="n_ctx must be from 1 to 72"):
        AnomalyCLIP(tiny, PROMPTS, n_ctx=73)
    text = AnomalyCLIP(tiny, PROMPTS, n_ctx=72).text
    assert (text.tokens == 49407).sum(dim=1).tolist() == [1, 1]  # both have their end
    assert text(["cup"]).isfinite().all()


def test_a_short_text_tower_has_fewer_learned_tokens(tiny: Backbone) -> None:
    """Its one block reads the first ones: others would never get a gradient, which several processes wait for."""
    method = AnomalyCLIP(tiny, PROMPTS, depth=9)
    assert sorted(method.trainable_parameters()) == ["text.ctx_neg", "text.ctx_pos"]


def test_new_prompts_follow_the_seed(tiny: Backbone) -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(AnomalyCLIP(tiny, PROMPTS).text.ctx_pos.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].std() == pytest.approx(0.02, rel=0.2)
