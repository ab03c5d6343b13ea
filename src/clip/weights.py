"""From a tag or a path to a weights file on this disk."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
from huggingface_hub import constants as hub_constants

from datamodules.errors import UserError, reason_of
from datamodules.images import CLIP_MEAN, CLIP_STD
from src.files import sha256_of

_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Weights:
    """Where the weights are, and what has to be known to use them.

    Attributes:
        path: the file; None means random weights.
        tag: open_clip's tag, if one was asked for.
        mean: the images' mean per channel, of values in [0, 1].
        std: the images' standard deviation per channel.
        quick_gelu: whether the tag was trained with QuickGELU.

    Example:
        >>> Weights().path, Weights().sha256  # random weights have no file
        (None, None)
    """

    path: Path | None = None
    tag: str | None = None
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    quick_gelu: bool = False

    @cached_property
    def sha256(self) -> str | None:
        """The hash of the file; None of random weights."""
        return sha256_of(self.path) if self.path else None


TagConfig = dict[str, Any]


def locate_weights(
    name: str,
    pretrained: str | None,
    tag_config: TagConfig | None,
    known_tags: Sequence[str],
    download: Callable[[TagConfig], str] | None,
) -> Weights:
    """Find the weights' file, and download it if it is a tag's and not here yet.

    Args:
        name: the model's name.
        pretrained: a file, a tag, or None for random weights.
        tag_config: what open_clip knows about the tag; None or empty if `pretrained` is none of its tags.
        known_tags: the tags open_clip has for this model, for messages.
        download: open_clip's own download, called only when there seems to be a network; None leaves a file that is
            not here where it is.

    Raises:
        UserError: neither a file nor a tag; or the tag's file is not here and can't be downloaded.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Path(folder, "clip.pt").touch()
        ...     weights = locate_weights("ViT-B-16", f"{folder}/clip.pt", tag_config=None, known_tags=[], download=None)
        >>> weights.path.name
        'clip.pt'
    """
    if pretrained is None:
        return Weights()
    path = Path(pretrained).expanduser()
    if path.is_file():
        return Weights(path=path.resolve())
    if not tag_config:
        raise UserError(
            f"backbone.pretrained must be a weights file or a tag of {name}, but got '{pretrained}', which is no file "
            f"here; tags: {', '.join(known_tags) or 'none'}"
        )
    found = _in_cache(tag_config)
    if found is None and download is not None:
        found = _download(name, pretrained, tag_config, download)
    return Weights(
        path=found,
        tag=pretrained,
        mean=tuple(tag_config.get("mean") or CLIP_MEAN),
        std=tuple(tag_config.get("std") or CLIP_STD),
        quick_gelu=bool(tag_config.get("quick_gelu")),
    )


def _in_cache(tag_config: TagConfig) -> Path | None:
    """The file from an earlier download through the hub, found without asking the network."""
    repository, _, filename = str(tag_config.get("hf_hub") or "").rpartition("/")
    if not repository:
        return None
    for candidate in (filename,) if filename else _HUB_FILES:
        cached = huggingface_hub.try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    return None


def _download(name: str, tag: str, tag_config: TagConfig, download: Callable[[TagConfig], str]) -> Path:
    """Download, or say in one line why not: without a network the hub's client retries for most of a minute."""
    source = hub_constants.ENDPOINT if tag_config.get("hf_hub") else str(tag_config.get("url"))
    local_name = f"{name}-quickgelu" if tag_config.get("quick_gelu") and not name.endswith("quickgelu") else name
    remedy = (
        "run once with network, or download the file elsewhere and give it by backbone.pretrained=/path/to/weights"
        + (f" backbone.name={local_name}" if local_name != name else "")
    )
    if not _reachable(source):
        raise UserError(
            f"the weights '{tag}' of {name} are not on this machine and {urlparse(source).hostname} can't be reached; "
            + remedy
        )
    try:
        return Path(download(tag_config))
    except Exception as error:  # the hub's client, urllib and ssl each raise their own
        raise UserError(
            f"the weights '{tag}' of {name} could not be downloaded ({reason_of(error)}); {remedy}"
        ) from error


def _reachable(url: str) -> bool:
    """Whether a download from `url` has a chance. Behind a proxy only the download itself can tell."""
    if hub_constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return True
    host = urlparse(url).hostname
    try:
        with socket.create_connection((host or "", 443), timeout=_PROBE_SECONDS):
            return True
    except OSError:
        return False
