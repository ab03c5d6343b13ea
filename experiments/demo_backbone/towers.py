"""open_clip's two towers, run with gradients and on windows of an image.

B images, P patches of a window, G patches along the full image's side, W width, D embedding, T tokens.
"""

import json
from pathlib import Path

import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F

from src.clip.architecture import STAGES
from src.models.dual_path import run_both_paths

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


def level_tokens(clip: CLIP, tokens: Tensor) -> list[Tensor]:
    """Original tokens (B, 1+P, W) of the last block of each stage, as `feature_tap=reference` reads them.

    They hold the attention residual of the next block. Unlike `DualPath` this has gradients.
    """
    blocks = clip.visual.transformer.resblocks
    stage_length = len(blocks) // STAGES
    levels = []
    for number, block in enumerate(blocks):
        state = run_both_paths(block, tokens)
        if number and number % stage_length == 0:
            levels.append(state.attended)
        tokens = state.output
    return [*levels, tokens]


def embed_cls(clip: CLIP, tokens: Tensor) -> Tensor:
    """The image's unit embedding (B, D), from the last block's tokens (B, 1+P, W)."""
    return F.normalize(clip.visual.ln_post(tokens[:, 0]) @ clip.visual.proj, dim=-1)


def encode_sentences(clip: CLIP, ids: Tensor) -> Tensor:
    """Unit embeddings (N, D) of N sentences (N, T); the tower is causal, so T may be less than its context."""
    length = ids.shape[1]
    tokens = clip.token_embedding(ids) + clip.positional_embedding[:length]
    tokens = clip.transformer(tokens, attn_mask=clip.attn_mask[:length, :length])
    ends = clip.ln_final(tokens)[torch.arange(len(ids)), ids.argmax(dim=1)]  # (N, W)
    return F.normalize(ends @ clip.text_projection, dim=-1)
