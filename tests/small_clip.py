"""Small CLIPs on disk and in memory. Their parameters are all random: open_clip starts many of them at 0 or 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from src.clip.backbone import Backbone, find_backbone
from src.models.prompts import Prompts

TEXT_CONFIG = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
PROMPTS = Prompts(["perfect {}", "{} without flaw"], ["broken {}", "{} with flaw"], ["a photo of a {}.", "a {}."])


def tiny_config(**vision: Any) -> dict[str, Any]:
    """16 patches, 12 blocks, 2 heads, with layer scale unless told otherwise."""
    measures = {"image_size": 32, "patch_size": 8, "layers": 12, "width": 32, "head_width": 16, "ls_init_value": 0.5}
    return {"embed_dim": 24, "vision_cfg": measures | vision, "text_cfg": TEXT_CONFIG}


def unit_embeddings(backbone: Backbone, sentences: Sequence[str]) -> Tensor:
    """Unit-length embeddings of sentences: K strings -> (K, D)."""
    return F.normalize(backbone.embed_sentences(sentences), dim=-1)


def write_architecture(folder: Path, stem: str = "architecture", **vision: Any) -> Path:
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(tiny_config(**vision)))
    return path


def build_backbone(folder: Path, size: int | None = None, **vision: Any) -> Backbone:
    config = write_architecture(folder, **vision)
    backbone = Backbone(find_backbone("tiny", None, str(config), size))
    randomise(backbone, seed=0)
    return backbone


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Move every parameter, so that a bias or a scale that is forgotten shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def random_images(count: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_text(count: int, embed_dim: int = 24, seed: int = 1) -> Tensor:
    """(count, D, 2), unit columns, another matrix for each image."""
    text = torch.randn(count, embed_dim, 2, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(text, dim=1)
