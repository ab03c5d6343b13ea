"""Where the image tower starts from: whitened patches and places that are told apart.

Neighbouring pixels are nearly equal, so under random filters every patch is its mean colour and little else, and it
takes very long until edges and grain are seen at all. Whitening makes all that varies in a patch vary equally.

W width, G patches along a side.
"""

import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor

from experiments.demo_backbone.batches import normalise
from experiments.demo_backbone.pool import Pool

PATCHES, FLOOR, PLACE_AMPLITUDE = 40_000, 0.01, 0.4


@torch.no_grad()
def start_image_tower(clip: CLIP, pool: Pool, seed: int) -> None:
    """Set the patch filters and the positional embedding."""
    visual = clip.visual
    side = visual.patch_size[0]
    visual.conv1.weight.copy_(_whitening(_sample_patches(pool, side, seed), len(visual.conv1.weight)))
    places = visual.positional_embedding[1:]
    places.copy_(PLACE_AMPLITUDE * _waves(visual.grid_size[0], places.shape[1]))


def _sample_patches(pool: Pool, side: int, seed: int) -> Tensor:
    """Random patches (N, 3, side, side), normalised."""
    rng = np.random.default_rng(seed)
    room = pool.damaged.shape[1] - side + 1
    picks = rng.integers([len(pool.category), room, room], size=(PATCHES, 3))
    return normalise(np.stack([pool.damaged[i, y : y + side, x : x + side] for i, y, x in picks]))


def _whitening(patches: Tensor, count: int) -> Tensor:
    """The `count` strongest principal filters (count, 3, side, side), each scaled to unit response."""
    flat = patches.flatten(1) - patches.flatten(1).mean(dim=0)
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    filters = (vectors / (values + FLOOR).sqrt()).T.flip(0)[:count]
    return filters.reshape(count, *patches.shape[1:])


def _waves(side: int, width: int) -> Tensor:
    """Sines and cosines of both coordinates at rising frequencies: (G * G, W)."""
    coordinate = torch.arange(side, dtype=torch.float32)
    rates = 0.15 * (1.5 / 0.15) ** torch.linspace(0, 1, width // 4)
    wave = coordinate[:, None] * rates  # (G, W / 4)
    line = torch.cat([wave.sin(), wave.cos()], dim=1)  # (G, W / 2)
    down = line[:, None].expand(side, side, -1)
    return torch.cat([down, down.transpose(0, 1)], dim=-1).reshape(side * side, -1)
