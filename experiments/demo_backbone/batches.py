"""Random batches of pairs: the same object without and with a defect, whole or as a close-up.

N pairs, w side of a close-up in pixels, g = w / patch side in patches.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from experiments.demo_backbone.pool import Pool

# The statistics by which the framework normalises images for CLIP.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
ELSEWHERE = 0.1


class Batch(NamedTuple):
    """images: (2 N, 3, w, w), normalised; the N flawless ones first, then their damaged twins.

    corner: (down, across) of the close-ups in patches. category: (2 N,). damage: (2 N, g, g), damaged pixels a patch.
    """

    images: Tensor
    corner: tuple[int, int]
    category: Tensor
    damage: Tensor


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
        damage = np.zeros((2, pairs, window, window), np.float32)
        for place, pick in enumerate(picks):
            down, across = self._corner(pick, window)
            area = np.s_[down : down + window, across : across + window]
            turn, mirror = int(self.rng.integers(4)), self.rng.random() < 0.5
            sources = (self.pool.flawless, self.pool.damaged, self.pool.touched)
            for target, source in zip((images[0], images[1], damage[1]), sources, strict=True):
                turned = np.rot90(source[pick][area], turn)
                target[place] = turned[:, ::-1] if mirror else turned
        pixels = torch.from_numpy(damage.reshape(2 * pairs, 1, window, window))
        return Batch(
            normalise(images.reshape(2 * pairs, window, window, 3)),
            self._place(window),
            torch.from_numpy(np.tile(self.pool.category[picks], 2)),
            F.avg_pool2d(pixels, self.patch)[:, 0] * self.patch**2,
        )

    def _corner(self, pick: int, window: int) -> tuple[int, int]:
        """Upper left pixel of a close-up that shows a point of the defect, and in one of ten cases of any other.

        Beside its defect a damaged image equals its twin: such close-ups teach little, the same image twice.
        """
        room = self.side - window
        if room == 0:
            return 0, 0
        points = np.flatnonzero(self.pool.touched[pick])
        if not len(points) or self.rng.random() < ELSEWHERE:
            return int(self.rng.integers(room + 1)), int(self.rng.integers(room + 1))
        point = np.array(np.divmod(self.rng.choice(points), self.side))
        down, across = np.clip(point - self.rng.integers(window, size=2), 0, room)
        return int(down), int(across)

    def _place(self, window: int) -> tuple[int, int]:
        """Where in the full image's grid of patches the close-ups of a batch are said to lie."""
        room = (self.side - window) // self.patch + 1
        return int(self.rng.integers(room)), int(self.rng.integers(room))


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """Images (N, h, w, 3) uint8 as the towers want them: (N, 3, h, w)."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
