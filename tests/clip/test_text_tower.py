"""The short way through the text tower against open_clip's own; the embeddings on disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.clip import text_tower
from src.clip.backbone import Backbone, describe_text_tower, find_backbone
from src.clip.sentence_cache import SentenceCache
from src.clip.text_tower import encode_embeddings, encode_tokens, has_causal_text_tower
from src.models.text import PromptEnsemble
from tests.golden_reference import Golden, paper_prompts
from tests.small_clip import PROMPTS, randomise, tiny_config, unit_embeddings, write_architecture

SENTENCES = ["a photo of a perfect screw.", "a photo of a screw.", "", "a photo", "A photo of a screw.", "nut", "screw"]


def build(folder: Path, cache: SentenceCache | None = None, **changes: Any) -> Backbone:
    """A small CLIP whose text tower has three blocks; `changes` are of its `text_cfg`, or `custom_text`."""
    custom = {key: changes.pop(key) for key in ("custom_text",) if key in changes}
    config = tiny_config()
    config |= {"text_cfg": config["text_cfg"] | {"layers": 3} | changes} | custom
    path = folder / "architecture.json"
    path.write_text(json.dumps(config))
    torch.manual_seed(0)
    backbone = Backbone(find_backbone("tiny", None, str(path)), cache)
    randomise(backbone, seed=0)
    return backbone


@torch.no_grad()
def by_open_clip(backbone: Backbone, sentences: Sequence[str]) -> Tensor:
    return F.normalize(backbone.clip.encode_text(backbone.tokenizer(list(sentences))), dim=-1)


@pytest.mark.parametrize("per_batch", [2, 512])
@pytest.mark.parametrize(
    "change", [{}, {"ls_init_value": 0.5}, {"qk_norm": True}, {"proj_type": "none", "width": 24}, {"proj_bias": True}]
)
def test_embeddings_are_open_clips(
    change: dict[str, Any], per_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tower, "SENTENCES_PER_BATCH", per_batch)
    backbone = build(tmp_path, **change)
    assert has_causal_text_tower(backbone.clip)
    expected = by_open_clip(backbone, SENTENCES)
    torch.testing.assert_close(unit_embeddings(backbone, SENTENCES), expected, rtol=0, atol=2e-6)


def test_the_papers_sentences_are_open_clips(golden: Golden) -> None:
    sentences = paper_prompts().sentences("metal_nut").anomalous
    expected = by_open_clip(golden.backbone, sentences)
    torch.testing.assert_close(unit_embeddings(golden.backbone, sentences), expected, rtol=0, atol=2e-6)


def test_a_sentence_longer_than_the_context_is_cut_as_open_clip_cuts_it(tiny: Backbone) -> None:
    sentences = ["a photo of " * 50, "a photo of a screw."]
    torch.testing.assert_close(unit_embeddings(tiny, sentences), by_open_clip(tiny, sentences), rtol=0, atol=2e-6)


@pytest.mark.parametrize("change", [{"no_causal_mask": True}, {"pool_type": "last"}, {"custom_text": True}])
def test_other_towers_go_open_clips_own_way(change: dict[str, Any], tmp_path: Path) -> None:
    custom = {"custom_text": True} if "no_causal_mask" in change else {}  # a plain CLIP takes none without its mask
    backbone = build(tmp_path, **change, **custom)
    assert not has_causal_text_tower(backbone.clip)
    expected = by_open_clip(backbone, SENTENCES)
    torch.testing.assert_close(unit_embeddings(backbone, SENTENCES), expected, rtol=0, atol=2e-6)


def test_a_tower_runs_from_token_embeddings(tiny: Backbone) -> None:
    tokens = tiny.tokenizer(SENTENCES)
    found = encode_embeddings(tiny.clip, tiny.clip.token_embedding(tokens), tokens.argmax(dim=1))
    torch.testing.assert_close(F.normalize(found, dim=-1), by_open_clip(tiny, SENTENCES), rtol=0, atol=2e-6)


def test_a_sentence_may_come_twice(tmp_path: Path) -> None:
    backbone = build(tmp_path)
    alone = unit_embeddings(backbone, ["a nut", "a bolt", "a nut"])
    torch.testing.assert_close(alone, by_open_clip(backbone, ["a nut", "a bolt", "a nut"]), rtol=0, atol=2e-6)


def test_a_sentence_that_is_cut_is_a_warning_each_time(tmp_path: Path) -> None:
    cache = SentenceCache(tmp_path / "text", "tower")
    fits = "screw " * 75  # with a beginning and an end 77 tokens
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"1 of 3 sentences are cut at the 77 tokens.*nut nut") as warned:
            build(tmp_path, cache).embed_sentences(["a photo", fits, "nut " * 76])
        assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(tmp_path, cache).embed_sentences(["a photo", fits])


def test_text_is_exact_under_autocast(tiny: Backbone) -> None:
    expected = unit_embeddings(tiny, SENTENCES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(unit_embeddings(tiny, SENTENCES), expected)


# On disk


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sentences went through a tower, a list each."""
    calls: list[int] = []

    def count(clip: Any, tokens: Tensor) -> Tensor:
        calls.append(len(tokens))
        return encode_tokens(clip, tokens)

    monkeypatch.setattr("src.clip.backbone.encode_tokens", count)
    return calls


def matrices(folder: Path, cache: SentenceCache | None, classes: Sequence[str] = ("nut", "coin")) -> Tensor:
    text = PromptEnsemble(build(folder, cache), PROMPTS, "mean")
    text.prepare(classes, "mvtec")
    return text(classes)


def test_a_second_run_encodes_nothing(tmp_path: Path, encoded: list[int]) -> None:
    cache = SentenceCache(tmp_path / "text", "tower")
    cold = matrices(tmp_path, cache)
    assert encoded == [4, 4, 4, 4]
    assert torch.equal(matrices(tmp_path, cache), cold)
    assert encoded == [4, 4, 4, 4]
    assert torch.equal(matrices(tmp_path, None), cold)
    assert torch.equal(matrices(tmp_path, cache, ["coin"])[0], cold[1])
    matrices(tmp_path, cache, ["coin", "tile"])
    assert sum(encoded) == 16 + 16 + 8


def test_another_tower_or_order_is_another_entry(tmp_path: Path) -> None:
    rows = F.normalize(torch.randn(2, 24), dim=-1)
    SentenceCache(tmp_path, "tower").write(["a", "b"], rows)
    assert torch.equal(SentenceCache(tmp_path, "tower").read(["a", "b"]), rows)
    assert SentenceCache(tmp_path, "other").read(["a", "b"]) is None
    assert SentenceCache(tmp_path, "tower").read(["b", "a"]) is None


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:-9] + bytes(9)])
def test_a_damaged_file_is_encoded_again(damage: Any, tmp_path: Path, encoded: list[int]) -> None:
    cache = SentenceCache(tmp_path / "text", "tower")
    cold = matrices(tmp_path, cache)
    files = sorted((tmp_path / "text").iterdir())
    assert len(files) == 4
    files[0].write_bytes(damage(files[0].read_bytes()))
    for _ in range(2):
        assert torch.equal(matrices(tmp_path, cache), cold)
        assert sum(encoded) == 16 + 4


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a file")
    with pytest.warns(UserWarning, match=r"paths\.cache_dir"):
        matrices(tmp_path, SentenceCache(tmp_path / "text", "tower"))


def test_the_key_knows_weights_architecture_and_activation(tmp_path: Path) -> None:
    source = find_backbone("tiny", None, str(write_architecture(tmp_path)))
    others = [
        describe_text_tower(source, "b"),
        describe_text_tower(source._replace(config=source.config | {"text_cfg": {}}), "a"),
        describe_text_tower(source._replace(weights=type(source.weights)(quick_gelu=True)), "a"),
    ]
    assert describe_text_tower(source, "a") not in others
