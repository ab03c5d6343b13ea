"""open_clip's model as the framework holds it, compared with open_clip alone."""

from __future__ import annotations

import json
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants as hub_constants
from open_clip import factory, pretrained
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.serialization import config as torch_files

from datamodules.errors import UserError
from src.clip import text_tower
from src.clip.backbone import Backbone, find_backbone
from src.models.dual_path import DualPath
from tests.small_clip import build_backbone, random_images, tiny_config, unit_embeddings, write_architecture

SENTENCES = ["a photo of a perfect screw.", "a screw.", "", "a dark photo of the capsule with contamination."]


def state_of(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.clip.state_dict().items()}


def assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def save_weights(backbone: Backbone, path: Path) -> Path:
    (save_file if path.suffix == ".safetensors" else torch.save)(state_of(backbone), path)
    return path


def load(
    folder: Path, weights: Path | None, name: str = "tiny", image_size: int | None = None, **vision: Any
) -> Backbone:
    config = write_architecture(folder, **vision)
    return Backbone(find_backbone(name, str(weights) if weights else None, str(config), image_size))


# The registry


@pytest.mark.parametrize("name", ["tiny", "my.tower-v1.2", "ViT-B-32"])
def test_own_architecture_is_built_and_open_clips_registry_is_as_before(name: str, tmp_path: Path) -> None:
    configs, paths = deepcopy(factory._MODEL_CONFIGS), list(factory._MODEL_CONFIG_PATHS)
    backbone = load(tmp_path, None, name)
    assert backbone.architecture.name == name
    assert (backbone.architecture.depth, backbone.architecture.width, backbone.architecture.embed_dim) == (12, 32, 24)
    assert len(backbone.blocks) == 12
    assert backbone.clip.visual.proj.shape == (32, 24)
    assert configs == factory._MODEL_CONFIGS
    assert list(factory._MODEL_CONFIG_PATHS) == paths


def test_registry_is_as_before_after_a_failure(tmp_path: Path) -> None:
    configs, paths = deepcopy(factory._MODEL_CONFIGS), list(factory._MODEL_CONFIG_PATHS)
    (tmp_path / "bad.pt").write_bytes(b"garbage")
    with pytest.raises(UserError):
        load(tmp_path, tmp_path / "bad.pt", "ViT-B-32")
    assert configs == factory._MODEL_CONFIGS
    assert list(factory._MODEL_CONFIG_PATHS) == paths


def test_unknown_name_offers_names_and_an_own_architecture() -> None:
    with pytest.raises(UserError, match=r"'ViT-X'; such as ViT-B-16-plus-240.*backbone\.config="):
        find_backbone("ViT-X", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "not valid JSON"),
        ("[]", "must hold"),
        ('{"embed_dim": 8}', "vision_cfg.*text_cfg"),
    ],
)
def test_bad_architecture_file_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"backbone\.config: .*mine\.json.*{message}"):
        find_backbone("tiny", None, str(path))


def test_own_context_length_reaches_the_tokenizer(tmp_path: Path) -> None:
    config = tiny_config()
    config["text_cfg"] = config["text_cfg"] | {"context_length": 12}
    path = tmp_path / "short.json"
    path.write_text(json.dumps(config))
    backbone = Backbone(find_backbone("tiny", None, str(path)))
    assert backbone.tokenizer(["a screw"]).shape == (1, 12)
    assert unit_embeddings(backbone, ["a photo of " * 20]).shape == (1, 24)


@pytest.mark.parametrize(
    "change",
    [{"vision_cfg": {"layrs": 12}}, {"text_cfg": {"width": 32, "typo": 1}}, {"typo": 1}, {"vision_cfg": None}],
)
def test_misspelt_keys_of_an_own_architecture_are_named(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(tiny_config() | change))
    with pytest.raises(UserError, match="backbone"):
        Backbone(find_backbone("tiny", None, str(path)))


@pytest.mark.parametrize("name", ["me/tiny", "hf-hub:me/tiny", "local-dir:/nowhere"])
def test_names_that_are_no_plain_names_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    config = write_architecture(tmp_path) if name == "me/tiny" else None
    with pytest.raises(UserError, match="backbone"):
        Backbone(find_backbone(name, None, str(config) if config else None))


# Weights


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_weights_come_back_from_their_file(suffix: str, tiny: Backbone, tmp_path: Path) -> None:
    loaded = load(tmp_path, save_weights(tiny, tmp_path / f"weights{suffix}"))
    assert_same_state(state_of(loaded), state_of(tiny))


def test_weights_in_torchs_older_format_are_read(tiny: Backbone, tmp_path: Path) -> None:
    torch.save(state_of(tiny), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same_state(state_of(load(tmp_path, tmp_path / "old.pt")), state_of(tiny))


def test_what_no_weights_file_holds_is_as_open_clip_makes_it(tiny: Backbone, tmp_path: Path) -> None:
    loaded = load(tmp_path, save_weights(tiny, tmp_path / "weights.pt"))
    causal_mask = torch.full((77, 77), float("-inf")).triu(1)
    assert torch.equal(loaded.clip.attn_mask, causal_mask)


@pytest.mark.parametrize("name", ["visual.proj", "transformer.resblocks.0.mlp.c_fc.weight", "text_projection"])
def test_weights_with_a_gap_are_named(name: str, tiny: Backbone, tmp_path: Path) -> None:
    state = state_of(tiny)
    del state[name]
    torch.save(state, tmp_path / "gap.pt")
    with pytest.raises(UserError, match=r"can't load the weights .*gap\.pt into tiny"):
        load(tmp_path, tmp_path / "gap.pt")


@pytest.mark.parametrize("content", ["weights", "garbage", None])
def test_a_tower_leaves_random_numbers_and_torchs_settings_alone(
    content: str | None, tiny: Backbone, tmp_path: Path
) -> None:
    path = save_weights(tiny, tmp_path / "weights.pt") if content else None
    if content == "garbage":
        (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04")
    before = torch.get_rng_state()
    with pytest.raises(UserError) if content == "garbage" else nullcontext():
        load(tmp_path, path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch_files.load.mmap


def test_weights_under_a_state_dict_key_are_found(tiny: Backbone, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state_of(tiny).items()}}, tmp_path / "w.pt")
    assert_same_state(state_of(load(tmp_path, tmp_path / "w.pt")), state_of(tiny))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_a_file_that_is_no_weights_is_named(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"no_weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"can't load the weights .*no_weights{suffix} into tiny: .*backbone\.name"):
        load(tmp_path, path)


@pytest.mark.parametrize("content", [{}, [1], {"a": 1}, {"a": torch.zeros(2)}])
def test_a_pickle_that_is_no_state_dict_is_named(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"can't load the weights .*other\.pt into tiny"):
        load(tmp_path, tmp_path / "other.pt")


@pytest.mark.parametrize("other", [{"width": 48}, {"layers": 8}, {"patch_size": 16}, {"ls_init_value": None}])
def test_weights_of_another_architecture_are_named(other: dict[str, Any], tiny: Backbone, tmp_path: Path) -> None:
    path = save_weights(tiny, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"can't load the weights .*weights\.pt into tiny"):
        load(tmp_path, path, **other)


# Towers of other measures


@pytest.mark.parametrize("image_size", [16, 48])
def test_another_image_size_interpolates_the_positions_as_open_clip_does(
    image_size: int, tiny: Backbone, tmp_path: Path
) -> None:
    path = save_weights(tiny, tmp_path / "weights.pt")
    loaded = load(tmp_path, path, image_size=image_size)
    config = write_architecture(tmp_path, stem="registered_by_test")
    open_clip.add_model_config(config)
    try:
        expected = open_clip.create_model("registered_by_test", str(path), force_image_size=image_size)
    finally:
        factory._MODEL_CONFIG_PATHS.remove(config)
        factory._MODEL_CONFIGS.pop("registered_by_test")
    assert_same_state(state_of(loaded), expected.state_dict())
    patches = (image_size // 8) ** 2
    assert loaded.architecture.image_size == image_size
    assert loaded.embed(random_images(2, image_size)).shape == (2, 1 + patches, 32)
    (level,) = DualPath(loaded, [12], "block_output")(random_images(2, image_size))
    assert level.surgery.shape == (2, 1 + patches, 24)


@pytest.mark.parametrize(
    ("vision", "image_size", "patches"),
    [({"patch_size": 14, "image_size": 28}, 56, 16), ({"layers": 24, "patch_size": 14, "image_size": 42}, 42, 9)],
)
def test_towers_like_vit_l_14(vision: dict[str, int], image_size: int, patches: int, tmp_path: Path) -> None:
    backbone = build_backbone(tmp_path, image_size, **vision)
    depth = backbone.architecture.depth
    layers = [depth // 4, depth // 2, 3 * depth // 4, depth]
    images = random_images(2, image_size)
    levels = DualPath(backbone, layers, "block_output")(images)
    assert [level.original.shape for level in levels] == [(2, 1 + patches, 32)] * 4
    torch.testing.assert_close(levels[-1].surgery[:, 0], backbone.clip.encode_image(images), rtol=1e-4, atol=3e-5)


# QuickGELU


def cache_as_hub_file(weights: Path, cache: Path, repository: str) -> None:
    """Lay a file where the hub's client keeps a download."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abc")
    weights.rename(snapshot / "open_clip_pytorch_model.bin")


@pytest.mark.parametrize(("tag", "activation"), [("quick", QuickGELU), ("plain", nn.GELU)])
def test_activation_follows_the_tag(
    tag: str, activation: type[nn.Module], tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(
        pretrained._PRETRAINED,
        "tiny",
        {
            "quick": {"hf_hub": "someone/tiny/", "quick_gelu": True, "mean": (0.5, 0.4, 0.3)},
            "plain": {"hf_hub": "someone/tiny/"},
        },
    )
    cache_as_hub_file(save_weights(tiny, tmp_path / "weights.bin"), tmp_path / "hub", "someone/tiny")
    source = find_backbone("tiny", tag, str(write_architecture(tmp_path)))
    backbone = Backbone(source)
    assert source.weights.tag == tag
    assert source.weights.mean == ((0.5, 0.4, 0.3) if tag == "quick" else open_clip.OPENAI_DATASET_MEAN)
    assert_same_state(state_of(backbone), state_of(tiny))
    text_blocks = backbone.clip.transformer.resblocks
    assert {type(block.mlp.gelu) for block in [*backbone.blocks, *text_blocks]} == {activation}
    gelu = {"quick": lambda x: x * torch.sigmoid(1.702 * x), "plain": nn.functional.gelu}[tag]
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(backbone.blocks[0].mlp.gelu(x), gelu(x))


# What the framework relies on


def test_stays_frozen_and_in_evaluation_mode(tmp_path: Path) -> None:
    backbone = build_backbone(tmp_path)
    outer = nn.Sequential(backbone).train()
    assert outer.training
    assert [name for name, module in backbone.named_modules() if module.training] == []
    assert [name for name, parameter in backbone.named_parameters() if parameter.requires_grad] == []


def test_sentences_are_open_clips_embeddings_at_unit_length(tiny: Backbone) -> None:
    embeddings = unit_embeddings(tiny, SENTENCES)
    tokens = open_clip.tokenize(SENTENCES)
    with torch.no_grad():
        expected = tiny.clip.encode_text(tokens)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-6)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(4))


def test_a_sentence_does_not_depend_on_its_batch(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [f"a photo of a {number}." for number in range(7)] + SENTENCES
    at_once = unit_embeddings(tiny, sentences)
    alone = torch.cat([unit_embeddings(tiny, [sentence]) for sentence in sentences])
    monkeypatch.setattr(text_tower, "SENTENCES_PER_BATCH", 3)
    in_batches = unit_embeddings(tiny, sentences)
    torch.testing.assert_close(at_once, alone, rtol=0, atol=2e-6)
    torch.testing.assert_close(at_once, in_batches, rtol=0, atol=2e-6)


def test_project_is_final_norm_and_projection(tiny: Backbone) -> None:
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    norm = tiny.clip.visual.ln_post
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(tiny.project(tokens), normed @ tiny.clip.visual.proj, rtol=0, atol=1e-5)


# Activation and positions, as other methods' authors have them


@pytest.mark.parametrize("own", [None, True, False])
@pytest.mark.parametrize("asked", [None, True, False])
def test_the_activation_that_is_asked_for(own: bool | None, asked: bool | None, tiny: Backbone, tmp_path: Path) -> None:
    config = tiny_config() | ({} if own is None else {"quick_gelu": own})
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps(config))
    weights = save_weights(tiny, tmp_path / "weights.pt")
    backbone = Backbone(find_backbone("tiny", str(weights), str(path), quick_gelu=asked))
    expected = QuickGELU if (own if asked is None else asked) else nn.GELU
    blocks = [*backbone.blocks, *backbone.clip.transformer.resblocks]
    assert {type(block.mlp.gelu) for block in blocks} == {expected}


@pytest.mark.parametrize("asked", [True, False])
def test_an_architecture_of_open_clips_takes_another_activation(asked: bool) -> None:
    """ViT-B-32-quickgelu has QuickGELU in its own configuration, ViT-B-32 has not."""
    for name in ("ViT-B-32", "ViT-B-32-quickgelu"):
        source = find_backbone(name, None, quick_gelu=asked)
        assert source.config["quick_gelu"] is source.weights.quick_gelu is asked
        assert source.own_config is (asked is not name.endswith("quickgelu"))


@pytest.mark.parametrize(
    ("way", "options"),
    [
        (None, {"mode": "bicubic", "antialias": True}),
        ("bicubic_antialias", {"mode": "bicubic", "antialias": True}),
        ("bilinear", {"mode": "bilinear"}),
    ],
)
@pytest.mark.parametrize("size", [24, 48])
def test_positions_of_another_grid(
    way: str | None, options: dict[str, Any], size: int, tiny: Backbone, tmp_path: Path
) -> None:
    config, weights = write_architecture(tmp_path), save_weights(tiny, tmp_path / "weights.pt")
    resized = Backbone(find_backbone("tiny", str(weights), str(config), size, position_resize=way))
    positions = tiny.clip.visual.positional_embedding
    grid = positions[1:].view(1, 4, 4, -1).permute(0, 3, 1, 2)
    side = size // 8
    expected = nn.functional.interpolate(grid, size=(side, side), align_corners=False, **options)
    expected = torch.cat([positions[:1], expected[0].flatten(1).T])
    torch.testing.assert_close(resized.clip.visual.positional_embedding.detach(), expected.detach())
    same = Backbone(find_backbone("tiny", str(weights), str(config), position_resize=way))
    assert torch.equal(same.clip.visual.positional_embedding, positions)


def test_an_unknown_way_to_resize_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="position_resize must be one of bicubic_antialias, bilinear, or null, but got"):
        find_backbone("ViT-B-16", None, position_resize="nearest")
