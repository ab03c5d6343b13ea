"""Batches for training: pairs of a flawless and a damaged image, whole or as close-ups.

B = 2 n images: n flawless ones, then their damaged twins. S side of the full image in pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.demo_backbone.pool import Pool

# The statistics by which the framework normalises images for CLIP.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
MIN_TOUCHED = 20


class Batch(NamedTuple):
    """images: (B, 3, h, w), normalised. corner: (down, across) of the close-up in patches. category: (B,).

    label: (B,), 1 damaged, 0 flawless. known: (B,), 0 where a close-up shows so little of a defect that its label
    would be a guess.
    """

    images: Tensor
    corner: tuple[int, int]
    category: Tensor
    label: Tensor
    known: Tensor


class Batches:
    """Draws batches at random.

    Args:
        pool: the images.
        patch: side of a patch in pixels.
        seed: of the drawing.
    """

    def __init__(self, pool: Pool, patch: int, seed: int) -> None:
        self.pool, self.patch = pool, patch
        self.side = pool.flawless.shape[1]
        self.rng = np.random.default_rng(seed)

    def draw(self, pairs: int, window: int) -> Batch:
        """`pairs` pairs as close-ups of `window` x `window` pixels, each turned or mirrored at random."""
        picks = self.rng.integers(len(self.pool.category), size=pairs)
        images = np.empty((2, pairs, window, window, 3), np.uint8)
        touched = np.empty(pairs, np.int64)
        for place, pick in enumerate(picks):
            down, across = self._corner(pick, window)
            area = np.s_[down : down + window, across : across + window]
            turn, mirror = int(self.rng.integers(4)), self.rng.random() < 0.5
            for image, source in ((images[0], self.pool.flawless), (images[1], self.pool.damaged)):
                turned = np.rot90(source[pick][area], turn)
                image[place] = turned[:, ::-1] if mirror else turned
            touched[place] = self.pool.touched[pick][area].sum()
        zeros, ones = np.zeros(pairs), np.ones(pairs)
        return Batch(
            normalise(images.reshape(2 * pairs, window, window, 3)),
            self._place(window),
            torch.from_numpy(np.tile(self.pool.category[picks], 2)),
            torch.from_numpy(np.concatenate([zeros, touched > 0])).float(),
            torch.from_numpy(np.concatenate([ones, (touched == 0) | (touched >= MIN_TOUCHED)])).float(),
        )

    def _corner(self, pick: int, window: int) -> tuple[int, int]:
        """Upper left pixel of a close-up that shows a point of the defect, and in one of ten cases of any other.

        Beside its defect a damaged image equals its twin: such close-ups teach little, the same image twice.
        """
        room = self.side - window
        if room == 0:
            return 0, 0
        if self.rng.random() < 0.1:
            return int(self.rng.integers(room + 1)), int(self.rng.integers(room + 1))
        points = np.flatnonzero(self.pool.touched[pick])
        point = np.array(np.divmod(self.rng.choice(points), self.side)) if len(points) else np.zeros(2, int)
        down, across = np.clip(point - self.rng.integers(window, size=2), 0, room)
        return int(down), int(across)

    def _place(self, window: int) -> tuple[int, int]:
        """Where in the full image's grid of patches the close-ups of a batch are said to lie."""
        room = (self.side - window) // self.patch + 1
        return int(self.rng.integers(room)), int(self.rng.integers(room))


def normalise(images: np.ndarray) -> Tensor:
    """Images (N, h, w, 3) uint8 as the towers want them: (N, 3, h, w)."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
