"""From a tag or a path to a file, without a network."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import open_clip
import pytest
from huggingface_hub import constants as hub_constants

from datamodules.errors import UserError
from src.clip.backbone import find_backbone
from src.clip.weights import CLIP_MEAN, CLIP_STD, Weights, locate_weights

HUB_TAG = {"hf_hub": "someone/tiny/", "mean": (0.5, 0.5, 0.5), "std": (0.1, 0.2, 0.3), "quick_gelu": True}


def no_download(tag_config: dict[str, Any]) -> NoReturn:
    pytest.fail(f"a download of {tag_config} was tried")


def locate(pretrained: str | None, tag_config: dict[str, Any] | None, download: Callable[..., str]) -> Weights:
    return locate_weights("tiny", pretrained, tag_config, ["one", "two"], download)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no proxy."""
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "hub"


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """There is no network; the hosts that were tried."""
    hosts: list[str] = []

    def refuse(address: tuple[str, int], *_: Any, **__: Any) -> NoReturn:
        assert address[1] == 443
        hosts.append(address[0])
        raise OSError("no route to host")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return hosts


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """There seems to be a network."""
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())


def put_in_cache(cache: Path, repository: str, filename: str) -> Path:
    folder = cache / f"models--{repository.replace('/', '--')}"
    file = folder / "snapshots" / "0123abc" / filename
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abc")
    return file


def test_nothing_asked_for_is_random_weights() -> None:
    assert locate(None, None, no_download) == Weights(path=None, tag=None, mean=CLIP_MEAN, std=CLIP_STD)


def test_clips_statistics_are_open_clips() -> None:
    assert (CLIP_MEAN, CLIP_STD) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def test_a_file_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    assert locate(str(tmp_path / "w.pt"), None, no_download) == Weights(path=tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    assert locate("w.pt", None, no_download).path == tmp_path / "w.pt"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/w.pt", None, no_download).path == tmp_path / "w.pt"


@pytest.mark.parametrize("pretrained", ["three", "/nowhere/w.pt"])
def test_neither_a_file_nor_a_tag_lists_the_tags(pretrained: str) -> None:
    with pytest.raises(UserError, match=rf"'{pretrained}', which is no file here; tags: one, two$"):
        locate(pretrained, {}, no_download)


def test_unknown_tag_lists_open_clips_tags_for_the_model(probed: list[str]) -> None:
    tags = open_clip.list_pretrained_tags_by_model("ViT-B-16-plus-240")
    assert "laion400m_e31" in tags
    with pytest.raises(UserError, match=rf"ViT-B-16-plus-240, but got 'laion'.*tags: {', '.join(tags)}"):
        find_backbone("ViT-B-16-plus-240", "laion")
    assert probed == []


@pytest.mark.parametrize("filename", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_cached_file_needs_no_network(filename: str, empty_cache: Path, probed: list[str]) -> None:
    file = put_in_cache(empty_cache, "someone/tiny", filename)
    weights = locate("one", HUB_TAG, no_download)
    assert weights == Weights(file, "one", (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), quick_gelu=True)
    assert probed == []


def test_a_tag_that_names_its_file_is_found_in_the_cache(empty_cache: Path, probed: list[str]) -> None:
    file = put_in_cache(empty_cache, "someone/tiny", "special.pt")
    assert locate("one", {"hf_hub": "someone/tiny/special.pt"}, no_download).path == file
    assert probed == []


def test_without_a_network_a_tag_ends_at_once_in_one_line(probed: list[str]) -> None:
    start = monotonic()
    with pytest.raises(UserError) as caught:
        locate("one", HUB_TAG, no_download)
    assert monotonic() - start < 1
    assert probed == ["huggingface.co"]
    for part in ("'one' of tiny", "huggingface.co can't be reached", "backbone.pretrained=/path/to/weights"):
        assert part in str(caught.value)


def test_a_tag_with_an_address_of_its_own_is_looked_for_there(probed: list[str]) -> None:
    with pytest.raises(UserError, match=r"files\.example\.org can't be reached"):
        locate("one", {"url": "https://files.example.org/w.pt"}, no_download)
    assert probed == ["files.example.org"]


def test_offline_by_environment_asks_nobody(probed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"can't be reached"):
        locate("one", HUB_TAG, no_download)
    assert probed == []


def test_open_clips_own_tag_without_a_network(probed: list[str]) -> None:
    with pytest.raises(UserError, match=r"'laion400m_e31' of ViT-B-16-plus-240.*backbone\.pretrained="):
        find_backbone("ViT-B-16-plus-240", "laion400m_e31")
    assert probed == ["huggingface.co"]


@pytest.mark.parametrize(
    ("name", "tag", "hint"),
    [
        ("ViT-L-14-336", "openai", "backbone.name=ViT-L-14-336-quickgelu"),
        ("ViT-L-14-336-quickgelu", "openai", None),
        ("ViT-B-16-plus-240", "laion400m_e31", None),
    ],
)
def test_a_file_by_hand_needs_the_name_with_the_tags_activation(
    name: str, tag: str, hint: str | None, probed: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        find_backbone(name, tag)
    if hint:
        assert hint in str(caught.value)
        assert open_clip.get_model_config(f"{name}-quickgelu")["quick_gelu"] is True
    else:
        assert "backbone.name" not in str(caught.value)


@pytest.mark.usefixtures("reachable")
def test_a_download_is_given_the_tag_and_its_file_used(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def download(tag_config: dict[str, Any]) -> str:
        asked.append(tag_config)
        return str(tmp_path / "new.bin")

    assert locate("one", HUB_TAG, download).path == tmp_path / "new.bin"
    assert asked == [HUB_TAG]


@pytest.mark.usefixtures("reachable")
@pytest.mark.parametrize("error", [OSError("403 Forbidden\nmore"), TimeoutError(), RuntimeError("checksum")])
def test_a_failed_download_is_one_line(error: Exception) -> None:
    def download(tag_config: dict[str, Any]) -> str:
        raise error

    reason = str(error).split("\n")[0] or type(error).__name__
    with pytest.raises(
        UserError, match=rf"'one' of tiny could not be downloaded \({reason}\); .*backbone\.pretrained="
    ):
        locate("one", HUB_TAG, download)


def test_behind_a_proxy_only_the_download_can_tell(probed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    assert locate("one", HUB_TAG, lambda _: "/from/proxy.bin").path == Path("/from/proxy.bin")
    assert probed == []
