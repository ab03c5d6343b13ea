"""A frozen CLIP from open_clip, untouched. This is the one file that imports open_clip.

B images, P patches, W width of the image tower, D joint embedding, K sentences.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from datamodules.errors import UserError, reason_of
from src.clip import text_tower
from src.clip.architecture import Architecture, read_architecture
from src.clip.loading import replaced, values_from, without
from src.clip.sentence_cache import SentenceCache
from src.clip.text_tower import encode_tokens
from src.clip.weights import Weights, locate_weights
from src.files import sha256_of
from src.identity import identify_releases

with without("wandb"):  # timm imports it unasked: a second, and folders in the temporary one if the run is killed
    import open_clip
    from open_clip import factory

P = ParamSpec("P")
R = TypeVar("R")
_OWN_FILES = "package:"
POSITION_RESIZES = {
    "bicubic_antialias": {"interpolation": "bicubic", "antialias": True},  # open_clip's own way
    "bilinear": {"interpolation": "bilinear", "antialias": False},
}
"""How the weights' position embeddings are brought to another grid; corners are not aligned."""
_INSTALLED = Path(__file__).resolve().parents[2]


class BackboneSource(NamedTuple):
    """A backbone that has been looked up and checked, but not loaded.

    Attributes:
        architecture: measures of the image tower at the chosen image size.
        config: open_clip's model configuration.
        own_config: whether `config` is another than the one that open_clip ships under that name.
        weights: the file, its preprocessing statistics and its activation.
        position_resize: one of `POSITION_RESIZES`.
    """

    architecture: Architecture
    config: dict[str, Any]
    own_config: bool
    weights: Weights
    position_resize: str = "bicubic_antialias"


def describe_text_tower(source: BackboneSource, weights_sha256: str) -> str:
    """The key under which sentence embeddings are kept: all that they depend on but the sentences and the machine.

    Example:
        >>> source = find_backbone("ViT-B-16", pretrained=None)
        >>> json.loads(describe_text_tower(source, weights_sha256="1a2b"))[0]
        'ViT-B-16'
    """
    tower = [source.architecture.name, source.config, source.weights.quick_gelu, weights_sha256]
    return json.dumps([*tower, _text_sources(), identify_releases()], sort_keys=True)


def find_backbone(
    name: str,
    pretrained: str | None,
    config: str | None = None,
    image_size: int | None = None,
    *,
    quick_gelu: bool | None = None,
    position_resize: str | None = None,
    downloads: bool = True,
) -> BackboneSource:
    """Look a backbone up: its architecture first, since that is cheap, then its weights' file (downloaded if need be).

    Args:
        name: open_clip model name; with `config`, the name under which the own architecture is registered.
        pretrained: one of open_clip's tags, the path of a weights file, or None for random weights.
        config: optional JSON file with an own architecture (`embed_dim`, `vision_cfg`, `text_cfg`). For both files,
            `package:a/b` means a/b in the folder that holds this project's packages.
        image_size: side of the input in pixels; None is the architecture's own.
        quick_gelu: whether the activation is QuickGELU; None is as the architecture and the tag say.
        position_resize: one of `POSITION_RESIZES`, for weights of another image size; None is open_clip's way.
        downloads: whether to fetch a file that is not here; if not, it is left out.

    Raises:
        UserError: unknown name, tag or way to resize, a tower that can't run, a file that isn't there, no network.

    Example:
        >>> source = find_backbone("ViT-B-16", pretrained=None, image_size=240)
        >>> source.architecture.grid_size, source.weights.path
        (15, None)
    """
    pretrained, config = _path_of(pretrained), _path_of(config)
    position_resize = position_resize or next(iter(POSITION_RESIZES))
    if position_resize not in POSITION_RESIZES:
        names = ", ".join(POSITION_RESIZES)
        raise UserError(f"backbone.position_resize must be one of {names}, or null, but got '{position_resize}'")
    # open_clip takes a name with a colon for a place to look in (hf-hub:, local-dir:), and one with a slash for a path.
    is_name = not set(name) & set(":/")
    model_config = None
    if is_name:
        model_config = _read_config(Path(config).expanduser()) if config else open_clip.get_model_config(name)
    if model_config is None:
        raise UserError(
            f"backbone.name must be one of open_clip's models, but got '{name}'; such as "
            "ViT-B-16-plus-240, ViT-B-16, ViT-L-14, ViT-L-14-336 (all: `open_clip.list_models()`), "
            "or give an own architecture by backbone.config=/path/to/architecture.json"
        )
    architecture = read_architecture(name, model_config, image_size)
    weights = locate_weights(
        name,
        pretrained,
        tag_config=open_clip.get_pretrained_cfg(name, pretrained) if pretrained else None,
        known_tags=open_clip.list_pretrained_tags_by_model(name),
        download=open_clip.download_pretrained if downloads else None,
    )
    is_own = config is not None
    if quick_gelu is not None:
        is_own |= quick_gelu is not bool(model_config.get("quick_gelu"))
        model_config, weights = {**model_config, "quick_gelu": quick_gelu}, replace(weights, quick_gelu=quick_gelu)
    return BackboneSource(architecture, model_config, is_own, weights, position_resize)


class Backbone(nn.Module):
    """open_clip's model, frozen and in evaluation mode for good.

    Args:
        source: what `find_backbone` found.
        sentences: where embeddings of sentences are kept between runs; None keeps none.
        compiled: whether those who run the image tower's blocks compile them (torch.compile).

    Raises:
        UserError: the weights file can't be read, or does not fit the architecture.

    Example:
        >>> files = "package:experiments/demo_backbone"  # the CLIP of the demo
        >>> source = find_backbone("demo-clip", f"{files}/demo_clip.safetensors", f"{files}/architecture.json")
        >>> clip = Backbone(source)
        >>> clip.embed_sentences(["a photo of a coin", "a photo of a broken coin"]).shape
        torch.Size([2, 96])
        >>> clip.image_tokens(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 145, 96])
    """

    def __init__(self, source: BackboneSource, sentences: SentenceCache | None = None, compiled: bool = False) -> None:
        super().__init__()
        self.architecture = source.architecture
        self.compiled = compiled
        self._sentences = sentences
        name, weights = source.architecture.name, source.weights
        try:
            with (
                torch.random.fork_rng(devices=[]),  # a seed's projections don't depend on how a tower is built
                values_from(weights.path),
                _registered(name, source.config if source.own_config else None),
                _positions_resized(source.position_resize),
            ):
                self.clip = open_clip.create_model(
                    name,
                    pretrained=str(weights.path) if weights.path else None,
                    force_image_size=source.architecture.image_size,
                    force_quick_gelu=weights.quick_gelu,
                )
                self.tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # torch, pickle, safetensors and open_clip each raise their own
            raise UserError(_explain_failure(name, weights.path, error)) from error
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: Lightning calls this for the whole module at each epoch."""
        del mode
        return super().train(False)

    @property
    def blocks(self) -> list[Any]:
        """The image tower's residual attention blocks, first to last."""
        return list(self.clip.visual.transformer.resblocks)

    @cached_property
    def run_block(self) -> Callable[[Any, Tensor], Tensor]:
        """Runs a block on tokens (B, N, W), compiled if that is asked for."""
        return self.compiled_if_asked(_run_block)

    def compiled_if_asked(self, function: Callable[P, R]) -> Callable[P, R]:
        """What runs blocks of the tower, by torch.compile if that is asked for."""
        return torch.compile(function) if self.compiled else function

    def embed(self, images: Tensor) -> Tensor:
        """Patch, position and CLS embedding: images (B, 3, H, W), normalised -> tokens (B, 1+P, W)."""
        tokens: Tensor = self.clip.visual._embeds(images)
        return tokens

    @torch.no_grad()
    def image_tokens(self, images: Tensor) -> Tensor:
        """The tower's own tokens after its last block, CLS first: images (B, 3, H, W), normalised -> (B, 1+P, D)."""
        depth = self.architecture.depth
        return self.project(self.block_outputs(images, [depth])[depth]).float()

    @torch.no_grad()
    def block_outputs(self, images: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """The tower's tokens after some blocks, CLS first, without final norm and projection.

        Args:
            images: (B, 3, H, W), normalised.
            layers: block numbers, counted from 1.

        Returns:
            (B, 1+P, W) of each layer, by its number.
        """
        tokens, outputs = self.embed(images), {}
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            tokens = self.run_block(block, tokens)
            if number in layers:
                outputs[number] = tokens
        return outputs

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and visual projection of every token, such as (B, 1+P, W) -> (B, 1+P, D)."""
        projected: Tensor = self.clip.visual.ln_post(tokens) @ self.clip.visual.proj
        return projected

    @torch.no_grad()
    def embed_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings of sentences as the tower gives them, of any length: K strings -> (K, D) float32.

        Sentences that are not on disk as this list go through the tower, in full precision whatever the run's. A list
        does so on its own: a batch's other sentences show in the last digits.
        """
        self._warn_of_cut(sentences)
        device = self.clip.logit_scale.device
        known = self._sentences.read(sentences, device) if self._sentences else None
        if known is not None:
            return known.to(device)
        tokens = self.tokenizer(list(sentences)).to(device)
        with torch.autocast(device.type, enabled=False):
            embeddings = encode_tokens(self.clip, tokens).float()
        if self._sentences and embeddings.isfinite().all():  # of damaged weights nothing is kept
            self._sentences.write(sentences, embeddings)
        return embeddings

    def _warn_of_cut(self, sentences: Sequence[str]) -> None:
        """Warn of sentences that the tower does not see to their end."""
        context: int = self.tokenizer.context_length
        # A token is a byte at least, so of most sentences the length is enough to know; two tokens are the ends.
        long = [
            sentence for sentence in dict.fromkeys(sentences) if len(sentence.encode(errors="replace")) > context - 2
        ]
        if not long:
            return
        whole = self.tokenizer(long, context_length=4 * max(map(len, long)) + context)
        cut = (whole[:, :context] != self.tokenizer(long)).any(dim=1).nonzero()[:, 0].tolist()
        if cut:
            warnings.warn(
                f"{len(cut)} of {len(sentences)} sentences are cut at the {context} tokens that the tower reads, "
                f"such as '{long[cut[0]]}'; shorten the category or the prompts",
                stacklevel=2,
            )


def _run_block(block: Any, tokens: Tensor) -> Tensor:
    output: Tensor = block(tokens)
    return output


@cache
def _text_sources() -> list[str]:
    """The code that encodes text, as this process has loaded it; later edits of its files are not part of it."""
    return [sha256_of(Path(file)) for file in (__file__, text_tower.__file__)]


def _path_of(name: str | None) -> str | None:
    """A file's name, with its place if it is one of the project's own."""
    if name is None or not name.startswith(_OWN_FILES):
        return name
    return str(_INSTALLED / name.removeprefix(_OWN_FILES))


def _read_config(path: Path) -> dict[str, Any]:
    """An own architecture's JSON."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not valid JSON: {error}"
        raise UserError(f"backbone.config: can't read {path} ({reason})") from error
    types = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in types.items()):
        raise UserError(f"backbone.config: {path} must hold embed_dim (a number), vision_cfg and text_cfg (objects)")
    return config


@contextmanager
def _registered(name: str, config: dict[str, Any] | None) -> Iterator[None]:
    """Let open_clip know an own architecture as `name` for a while; its own entry of that name comes back after.

    open_clip's registry names an architecture after its file, so the file is written under the wanted name.
    """
    if config is None:
        yield
        return
    shipped = factory._MODEL_CONFIGS.get(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(path)
        try:
            yield
        finally:
            factory._MODEL_CONFIG_PATHS.remove(path)
            factory._MODEL_CONFIGS.pop(name, None)
            if shipped is not None:
                factory._MODEL_CONFIGS[name] = shipped


@contextmanager
def _positions_resized(way: str) -> Iterator[None]:
    """Have open_clip bring position embeddings to the model's grid in this way while it loads weights."""
    with replaced(factory, "resize_pos_embed", partial(factory.resize_pos_embed, **POSITION_RESIZES[way])):
        yield


def _explain_failure(name: str, path: Path | None, error: Exception) -> str:
    """One line for what open_clip says over many."""
    if path is None:
        return f"backbone {name} can't be built: {reason_of(error)}; check backbone.name and backbone.config"
    return (
        f"can't load the weights {path} into {name}: {reason_of(error)}; expected a state dict of that architecture "
        "(.pt, .bin or .safetensors), check backbone.name and backbone.config"
    )
