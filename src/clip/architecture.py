"""What a CLIP's image tower looks like, read from its configuration before any weight is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.errors import UserError

STAGES = 4

# Settings of open_clip's vision_cfg under which a tower is not the plain ViT whose blocks the methods read.
_NOT_PLAIN = {
    "attentional_pool": "pools with attention",
    "final_ln_after_pool": "normalises after pooling",
    "qk_norm": "normalises queries and keys",
    "scaled_cosine_attn": "uses cosine attention",
    "scale_heads": "scales its heads",
    "scale_attn_inner": "normalises inside its attention",
    "scale_attn": "normalises after its attention",
    "scale_fc": "normalises inside its MLP",
}


@dataclass(frozen=True)
class Architecture:
    """The image tower's measures.

    Attributes:
        name: open_clip's model name.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        depth: number of transformer blocks.
        width: channels of the tower's tokens (W).
        embed_dim: channels of the joint embedding (D).

    Example:
        >>> Architecture("ViT-B-16", image_size=224, patch_size=16, depth=12, width=768, embed_dim=512).grid_size
        14
    """

    name: str
    image_size: int
    patch_size: int
    depth: int
    width: int
    embed_dim: int

    @property
    def grid_size(self) -> int:
        """Patches along one side; P is its square."""
        return self.image_size // self.patch_size

    @property
    def quarters(self) -> list[int]:
        """The blocks at 1/4, 2/4, 3/4 and 4/4 of the depth, counted from 1, where most methods read their levels."""
        return sorted({max(self.depth * quarter // STAGES, 1) for quarter in range(1, STAGES + 1)})


def read_architecture(name: str, config: Mapping[str, Any], image_size: int | None = None) -> Architecture:
    """Take the measures from an open_clip model configuration and refuse towers that the methods can't read.

    Args:
        name: the model's name, for messages.
        config: open_clip's JSON: `embed_dim`, `vision_cfg`, `text_cfg`.
        image_size: another input size than the configuration's, in pixels; None keeps it.

    Raises:
        UserError: the tower is no plain ViT, or the image size does not fit the patches.

    Example:
        >>> config = {"embed_dim": 512, "vision_cfg": {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224}}
        >>> read_architecture("ViT-B-16", config).grid_size
        14
        >>> read_architecture("ViT-B-16", config, image_size=240).grid_size
        15
    """
    vision = config["vision_cfg"]
    _require_plain_vit(name, vision)
    depth, patch_size = vision.get("layers", 12), vision.get("patch_size", 16)
    size = vision.get("image_size", 224) if image_size is None else image_size
    for key, value in (("layers", depth), ("patch_size", patch_size), ("image_size", size)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"backbone {name}: {key} must be one positive number, but got {value}")
    if size % patch_size:
        below = size // patch_size * patch_size
        raise UserError(
            f"image_size must be a multiple of the patch size {patch_size} of {name}, but got {size}; "
            f"nearest: {' or '.join(str(s) for s in (below, below + patch_size) if s)}"
        )
    return Architecture(name, size, patch_size, depth, int(vision.get("width", 768)), int(config["embed_dim"]))


def check_stages(architecture: Architecture) -> None:
    """Check that the blocks can be cut into four equal stages.

    Raises:
        ValueError: they can't.

    Example:
        >>> check_stages(Architecture("ViT-B-16", 224, 16, depth=12, width=768, embed_dim=512))
    """
    if architecture.depth % STAGES:
        raise ValueError(
            f"feature_layers end {STAGES} equal stages, but backbone {architecture.name} has {architecture.depth} "
            f"blocks; choose a tower whose depth is a multiple of {STAGES}, such as ViT-B-16-plus-240, or another model"
        )


def check_feature_layers(
    feature_layers: Sequence[int], architecture: Architecture, name: str = "feature_layers"
) -> None:
    """Check that the levels are block numbers, counted from 1, in rising order.

    Raises:
        ValueError: a number is out of range, or the numbers don't rise.

    Example:
        >>> architecture = Architecture("ViT-B-16", 224, 16, depth=12, width=768, embed_dim=512)
        >>> check_feature_layers([3, 6, 9, 12], architecture)
        >>> check_feature_layers([6, 3], architecture)
        Traceback (most recent call last):
          ...
        ValueError: feature_layers must rise and not repeat, but got [6, 3]
    """
    depth = architecture.depth
    is_list = isinstance(feature_layers, Sequence) and not isinstance(feature_layers, str)
    if not (is_list and feature_layers and all(isinstance(n, int) and 1 <= n <= depth for n in feature_layers)):
        raise ValueError(
            f"{name} must be a list of block numbers from 1 to {depth} for {architecture.name}, "
            f"but got {feature_layers}"
        )
    if list(feature_layers) != sorted(set(feature_layers)):
        raise ValueError(f"{name} must rise and not repeat, but got {feature_layers}")


def chosen_layers(
    layers: Sequence[int] | None, default: Sequence[int], architecture: Architecture, name: str = "feature_layers"
) -> list[int]:
    """The levels that a method reads: those that were given, or else its own.

    Raises:
        ValueError: see `check_feature_layers`.

    Example:
        >>> architecture = Architecture("ViT-B-16", 224, 16, depth=12, width=768, embed_dim=512)
        >>> chosen_layers(None, architecture.quarters, architecture)
        [3, 6, 9, 12]
    """
    chosen = default if layers is None else layers
    check_feature_layers(chosen, architecture, name)
    return list(chosen)


def _require_plain_vit(name: str, vision: Mapping[str, Any]) -> None:
    """Name what is not plain about the tower, if anything."""
    if vision.get("timm_model_name"):
        reason = f"is timm's {vision['timm_model_name']}"
    elif isinstance(vision.get("layers"), (list, tuple)):
        reason = "is a ResNet"
    elif vision.get("block_type") not in (None, "default"):
        reason = f"has blocks of type {vision['block_type']}"
    elif vision.get("pool_type", "tok") != "tok":
        reason = f"pools by '{vision['pool_type']}' instead of its CLS token"
    else:
        reason = next((text for key, text in _NOT_PLAIN.items() if vision.get(key)), "")
    if reason:
        raise UserError(
            f"backbone {name} can't run: its image tower {reason}, and the methods need open_clip's plain ViT; "
            "choose one such as ViT-B-16-plus-240, ViT-B-16, ViT-L-14 or ViT-L-14-336"
        )
