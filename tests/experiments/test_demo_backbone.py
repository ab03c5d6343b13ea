"""The demo backbone's weights: small, in a safe format, and loadable by open_clip alone."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from datamodules.demo.settings import DEFECTS
from experiments.demo_backbone.captions import Captions, project_prompts
from experiments.demo_backbone.towers import ARCHITECTURE_FILE, build_clip, embed_cls, embed_window, level_tokens
from src.clip.backbone import Backbone, find_backbone
from src.models.dual_path import DualPath
from tests.small_clip import unit_embeddings

WEIGHTS = ARCHITECTURE_FILE.with_name("demo_clip.safetensors")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(find_backbone("demo-clip", str(WEIGHTS), str(ARCHITECTURE_FILE)))


def test_weights_are_small_and_in_half_precision() -> None:
    assert WEIGHTS.stat().st_size <= 8_000_000
    assert {value.dtype for value in load_file(WEIGHTS).values()} == {torch.float16}


def test_plain_open_clip_loads_them(tmp_path: Path, backbone: Backbone) -> None:
    config = tmp_path / "demo-clip-plain.json"
    config.write_text(ARCHITECTURE_FILE.read_text())
    open_clip.add_model_config(config)
    model = open_clip.create_model("demo-clip-plain", pretrained=str(WEIGHTS)).eval()
    size = json.loads(ARCHITECTURE_FILE.read_text())["vision_cfg"]["image_size"]
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images), backbone.clip.encode_image(images))


def test_only_rows_of_used_words_are_kept() -> None:
    table = load_file(WEIGHTS)["token_embedding.weight"]
    captions = Captions(list(DEFECTS))
    assert len(table) == 49408
    assert table.any(dim=1).nonzero()[:, 0].tolist() == captions.used.tolist()


@pytest.mark.slow
def test_sentences_of_a_class_tell_flawless_from_damaged(backbone: Backbone) -> None:
    for name in DEFECTS:
        normal, anomalous = (unit_embeddings(backbone, side) for side in project_prompts().sentences(name))
        contrast = anomalous.mean(dim=0) - normal.mean(dim=0)
        assert (anomalous @ contrast).mean() > (normal @ contrast).mean() + 1e-3


def test_training_reads_the_tokens_that_the_framework_reads(backbone: Backbone) -> None:
    depth = backbone.architecture.depth
    layers = [depth * stage // 4 for stage in range(1, 5)]
    images = torch.rand(2, 3, backbone.architecture.image_size, backbone.architecture.image_size)
    expected = DualPath(backbone, layers, "reference")(images)
    with torch.no_grad():
        found = level_tokens(backbone.clip, embed_window(backbone.clip, images, (0, 0)))
        cls_token = embed_cls(backbone.clip, found[-1])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.original, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cls_token, F.normalize(expected[-1].surgery[:, 0], dim=-1), atol=1e-5, rtol=1e-4)


def test_a_close_up_takes_its_own_places() -> None:
    clip = build_clip(8)
    whole = embed_window(clip, torch.zeros(1, 3, 96, 96), (0, 0))[:, 1:].view(1, 12, 12, -1)
    part = embed_window(clip, torch.zeros(1, 3, 32, 32), (3, 5))[:, 1:].view(1, 4, 4, -1)
    torch.testing.assert_close(part, whole[:, 3:7, 5:9])
