"""open_clip's two towers, run with gradients and on windows of an image.

B images, P patches of a window, G patches along the full image's side, W width, D embedding, T tokens.
"""

import json
from pathlib import Path

import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F

from src.models.architecture import STAGES
from src.models.dual_block import dual_attention
from src.models.dual_path import Level

ARCHITECTURE_FILE = Path(__file__).with_name("architecture.json")


def build_clip(vocabulary: int) -> CLIP:
    """The architecture of the JSON file with random weights and a vocabulary of this size."""
    config = json.loads(ARCHITECTURE_FILE.read_text())
    config["text_cfg"]["vocab_size"] = vocabulary
    return CLIP(**config)


def embed_window(clip: CLIP, images: Tensor, corner: tuple[int, int]) -> Tensor:
    """Tokens (B, 1+P, W) of windows (B, 3, h, w) that lie `corner` = (down, across) patches inside the full image."""
    visual = clip.visual
    patches = visual.conv1(images)  # (B, W, h, w) in patches
    rows, columns = patches.shape[-2:]
    side = visual.grid_size[0]
    places = visual.positional_embedding[1:].view(side, side, -1)
    places = places[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
    tokens = patches.permute(0, 2, 3, 1) + places  # (B, h, w, W)
    cls_token = (visual.class_embedding + visual.positional_embedding[0]).expand(len(images), 1, -1)
    return visual.ln_pre(torch.cat([cls_token, tokens.flatten(1, 2)], dim=1))


def dual_path_levels(clip: CLIP, tokens: Tensor) -> list[Level]:
    """The last block of each stage as a level, read as `feature_tap=reference` does, with gradients.

    A level's original tokens hold the attention residual of the next block; its second path ends with the stage.
    """
    visual = clip.visual
    blocks = visual.transformer.resblocks
    stage_length = len(blocks) // STAGES
    seconds: list[Tensor] = []
    originals: list[Tensor] = []
    second = torch.zeros_like(tokens)
    for number, block in enumerate(blocks):
        residual, value_residual = dual_attention(block, tokens)
        starts_stage = number % stage_length == 0
        tokens = tokens + residual
        if starts_stage and number:
            originals.append(tokens)
            seconds.append(second)
        second = value_residual if starts_stage else second + value_residual
        tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    originals.append(tokens)
    seconds.append(second)
    return [
        Level(original, visual.ln_post(torch.cat([original[:, :1], second[:, 1:]], dim=1)) @ visual.proj)
        for original, second in zip(originals, seconds, strict=True)
    ]


def encode_sentences(clip: CLIP, ids: Tensor) -> Tensor:
    """Unit embeddings (N, D) of N sentences (N, T); the tower is causal, so T may be less than its context."""
    length = ids.shape[1]
    tokens = clip.token_embedding(ids) + clip.positional_embedding[:length]
    tokens = clip.transformer(tokens, attn_mask=clip.attn_mask[:length, :length])
    ends = clip.ln_final(tokens)[torch.arange(len(ids)), ids.argmax(dim=1)]  # (N, W)
    return F.normalize(ends @ clip.text_projection, dim=-1)
