"""One image of the demo data set, from its address (seed, split, category, kind of damage, number)."""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.demo import defects, objects, textures
from datamodules.demo.defects import Painted
from datamodules.demo.photo import shoot
from datamodules.demo.scene import Array, Mask, Scene
from datamodules.demo.settings import DEFECTS

_DRAW: dict[str, Callable[[np.random.Generator, int], Scene]] = {
    name: getattr(textures, name, None) or getattr(objects, name) for name in DEFECTS
}
_DAMAGE: dict[str, Callable[[np.random.Generator, Scene], Painted]] = {
    name: getattr(defects, name) for kinds in DEFECTS.values() for name in kinds
}
# A defect is drawn anew until it covers at least this share of the image, and differs by this much where it is.
_MIN_AREA, _MIN_CHANGE, _VISIBLE, _TRIES = 0.004, 0.13, 0.05, 40


class Photo(NamedTuple):
    """image: (S, S, 3) uint8. flawless: the same photograph without the defect. mask, region: (S, S) bool."""

    image: NDArray[np.uint8]
    flawless: NDArray[np.uint8]
    mask: Mask
    region: Mask


def damage(rng: np.random.Generator, scene: Scene, kind: str) -> tuple[Array, Mask]:
    """Damage a scene: the image (S, S, 3) and the mask (S, S) of the pixels that changed; no other pixel did."""
    size = scene.image.shape[0]
    best = (0.0, scene.image, np.zeros((size, size), bool))
    for _ in range(_TRIES):
        painted, opacity = _DAMAGE[kind](rng, scene)
        shape = (opacity > 0.4) & scene.region
        change = np.abs(painted - scene.image).max(-1) * opacity
        # Closing keeps pixels within the defect whose colour happens to agree: one defect, not a sieve.
        seen = (shape & (change > _VISIBLE)).astype(np.uint8)
        mask = cv2.morphologyEx(seen, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(bool) & shape
        strength = float(change[mask].mean()) if mask.mean() >= _MIN_AREA else 0.0
        if strength > best[0]:
            mixed = scene.image + (painted - scene.image) * (opacity * mask)[..., None]
            best = (strength, mixed.astype(np.float32), mask)
        if strength >= _MIN_CHANGE:
            break
    return best[1], best[2]


def render(seed: int, split: str, category: str, kind: str, number: int, size: int) -> Photo:
    """Draw one image. The same address gives the same image, and the drawing order does not matter.

    >>> photo = render(seed=7, split="test", category="wood", kind="scratch", number=0, size=32)
    >>> photo.image.shape, bool(photo.mask.any())
    ((32, 32, 3), True)
    """
    address = [seed, number, *(zlib.crc32(part.encode()) for part in (split, category, kind))]
    draw, hurt, camera = (np.random.default_rng([*address, stream]) for stream in range(3))
    scene = _DRAW[category](draw, size)
    image, mask = scene.image, np.zeros((size, size), bool)
    if kind != "good":
        image, mask = damage(hurt, scene, kind)
    state = camera.bit_generator.state
    flawless = shoot(camera, scene.image)
    camera.bit_generator.state = state
    return Photo(shoot(camera, image) if kind != "good" else flawless, flawless, mask, scene.region)
