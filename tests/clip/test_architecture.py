"""Which towers run, on open_clip's own configurations."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import _build_vision_tower
from open_clip.transformer import VisionTransformer

from datamodules.errors import UserError
from src.clip.architecture import Architecture, check_feature_layers, check_stages, read_architecture
from tests.small_clip import tiny_config


def read(name: str, image_size: int | None = None) -> Architecture:
    return read_architecture(name, open_clip.get_model_config(name), image_size)


@pytest.mark.parametrize(
    ("name", "measures"),
    [
        ("ViT-B-16-plus-240", (240, 16, 12, 896, 640)),
        ("ViT-L-14", (224, 14, 24, 1024, 768)),
        ("ViT-L-14-336", (336, 14, 24, 1024, 768)),
        ("ViT-B-32", (224, 32, 12, 768, 512)),
    ],
)
def test_plain_towers_have_the_published_measures(name: str, measures: tuple[int, ...]) -> None:
    assert read(name) == Architecture(name, *measures)


@pytest.mark.parametrize(("name", "side"), [("ViT-B-16-plus-240", 15), ("ViT-L-14-336", 24), ("ViT-B-32", 7)])
def test_grid_size(name: str, side: int) -> None:
    assert read(name).grid_size == side


def test_what_is_left_out_has_open_clips_defaults() -> None:
    config = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}
    assert read_architecture("x", config) == Architecture("x", 224, 16, 12, 768, 8)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "is a ResNet"),
        ("ViT-B-16-SigLIP", "is timm's vit_base_patch16_siglip_224"),
        ("EVA02-L-14", "is timm's eva02_large"),
        ("coca_ViT-B-32", "pools with attention"),
        ("ViT-L-14-CLIPA", "pools by 'avg'"),
    ],
)
def test_other_towers_are_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"{name} can't run: its image tower {reason}.*ViT-B-16-plus-240"):
        read(name)


@pytest.mark.parametrize(
    "setting",
    [
        {"block_type": "custom"},
        {"qk_norm": True},
        {"scaled_cosine_attn": True},
        {"scale_heads": True},
        {"scale_attn_inner": True},
        {"scale_attn": True},
        {"scale_fc": True},
        {"final_ln_after_pool": True},
        {"pool_type": "none"},
    ],
)
def test_blocks_that_are_not_plain_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"backbone mine can't run"):
        read_architecture("mine", tiny_config(**setting))


def test_what_is_accepted_is_built_as_a_plain_vit_of_these_measures() -> None:
    """All that open_clip ships, built without memory."""
    seen: list[dict[str, Any]] = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        try:
            architecture = read_architecture(name, config)
        except UserError:
            continue
        if config["vision_cfg"] in seen:
            continue
        seen.append(config["vision_cfg"])
        with torch.device("meta"):
            tower = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
        assert type(tower) is VisionTransformer, name
        assert (tower.pool_type, tower.attn_pool, tower.final_ln_after_pool) == ("tok", None, False), name
        blocks = list(tower.transformer.resblocks)
        assert {type(block.attn) for block in blocks} == {torch.nn.MultiheadAttention}, name
        assert len(blocks) == architecture.depth, name
        assert tower.proj.shape == (architecture.width, architecture.embed_dim), name
        assert len(tower.positional_embedding) == 1 + architecture.grid_size**2, name
    assert len(seen) >= 15


@pytest.mark.parametrize("depth", [1, 6, 13])
def test_only_stages_need_a_depth_that_can_be_cut_into_four(depth: int) -> None:
    architecture = read_architecture("odd", tiny_config(layers=depth))
    with pytest.raises(ValueError, match=rf"odd has {depth} blocks.*multiple of 4"):
        check_stages(architecture)


@pytest.mark.parametrize(
    ("depth", "quarters"), [(24, [6, 12, 18, 24]), (12, [3, 6, 9, 12]), (10, [2, 5, 7, 10]), (2, [1, 2]), (1, [1])]
)
def test_levels_of_any_depth_end_with_the_last_block(depth: int, quarters: list[int]) -> None:
    assert read_architecture("odd", tiny_config(layers=depth)).quarters == quarters


@pytest.mark.parametrize(
    ("size", "nearest"), [(30, "24 or 32"), (7, "8"), (33, "32 or 40")], ids=["between", "below a patch", "above"]
)
def test_image_size_must_be_a_multiple_of_the_patch(size: int, nearest: str) -> None:
    with pytest.raises(
        UserError, match=rf"image_size must be a multiple.*8 of tiny, but got {size}; nearest: {nearest}$"
    ):
        read_architecture("tiny", tiny_config(), size)


def test_image_size_overrides_the_configurations() -> None:
    architecture = read("ViT-L-14-336", 518)
    assert (architecture.image_size, architecture.grid_size) == (518, 37)


@pytest.mark.parametrize("measure", ["layers", "patch_size", "image_size"])
def test_measures_must_be_positive(measure: str) -> None:
    for value in (0, -8, 8.0):
        with pytest.raises(UserError, match=rf"backbone tiny: {measure} must be one positive number, but got {value}$"):
            read_architecture("tiny", tiny_config(**{measure: value}))
    with pytest.raises(UserError, match=r"image_size must be one positive number, but got 0$"):
        read_architecture("tiny", tiny_config(), 0)


def test_patches_of_one_pixel_and_the_default_blocks_are_plain() -> None:
    config = tiny_config(patch_size=1, image_size=1, block_type="default", pool_type="tok", qk_norm=False)
    assert read_architecture("tiny", config).grid_size == 1


def test_images_and_patches_must_be_square() -> None:
    with pytest.raises(UserError, match=r"image_size must be one positive number, but got \[32, 64\]"):
        read_architecture("tiny", tiny_config(image_size=[32, 64]))
    with pytest.raises(UserError, match=r"patch_size must be one positive number"):
        read_architecture("tiny", tiny_config(patch_size=[8, 4]))


@pytest.mark.parametrize("layers", [[], [0], [-1, 3], [3, 6, 9, 13]])
def test_feature_layers_out_of_range(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"feature_layers.*from 1 to 12 for ViT-B-32"):
        check_feature_layers(layers, read("ViT-B-32"))


@pytest.mark.parametrize("layers", [3, "3", None, [3.0, 6.0], ["3"]])
def test_feature_layers_are_a_list_of_numbers(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a list of block numbers from 1 to 12 for ViT-B-32, but got"):
        check_feature_layers(layers, read("ViT-B-32"))


@pytest.mark.parametrize("layers", [[6, 3], [3, 3, 6]])
def test_feature_layers_that_do_not_rise(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"feature_layers must rise"):
        check_feature_layers(layers, read("ViT-B-32"))


@pytest.mark.parametrize("layers", [[12], [1, 2, 3], (3, 6, 9, 12)])
def test_feature_layers_in_range_pass(layers: list[int]) -> None:
    assert check_feature_layers(layers, read("ViT-B-32")) is None
