"""Training images that are four images in one, as APRIL-GAN trains on (https://arxiv.org/abs/2305.17382)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.images import UInt8Array
from datamodules.records import Record

MOSAIC_SHARE = 0.2  # of the training images, as the authors train on MVTec AD


class Mosaics:
    """Draws the images of mosaics: four of one category, which may repeat.

    As in the authors' code, a folder of the category's images is drawn first, and then one of its images: kinds of
    damage are equally likely, however many images they have.

    Args:
        records: the training images.

    >>> records = [Record(Path(f"cup/{name}.png"), "cup", 0, None) for name in ("good/0", "good/1", "bad/0")]
    >>> drawn = [Mosaics(records).draw("cup", [7, number]) for number in range(1000)]
    >>> sum(four is not None for four in drawn), {len(four) for four in drawn if four}
    (195, {4})
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._kinds: dict[str, dict[Path, list[Record]]] = {}
        for record in records:
            of_category = self._kinds.setdefault(record.category, {})
            of_category.setdefault(record.image_path.parent, []).append(record)

    def draw(self, category: str, seed: Sequence[int]) -> list[Record] | None:
        """Four images of a category, or, in four of five cases, none. It depends on the seed alone."""
        generator = np.random.default_rng(seed)
        if generator.random() >= MOSAIC_SHARE:
            return None
        kinds = list(self._kinds[category].values())
        drawn = [kinds[generator.integers(len(kinds))] for _ in range(4)]
        return [kind[generator.integers(len(kind))] for kind in drawn]


def mosaic_of_images(images: Sequence[Image.Image]) -> Image.Image:
    """Put four images together, two above two, each of the first one's size.

    >>> mosaic_of_images([Image.new("RGB", (30, 20))] * 4).size
    (60, 40)
    """
    width, height = images[0].size
    mosaic = Image.new("RGB", (2 * width, 2 * height))
    for number, image in enumerate(images):
        own = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
        mosaic.paste(own, (number % 2 * width, number // 2 * height))
    return mosaic


def mosaic_of_masks(masks: Sequence[UInt8Array]) -> UInt8Array:
    """Do the same with masks (h, w) uint8 {0, 1}.

    >>> empty, full = np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8)
    >>> mosaic_of_masks([empty, full, full, empty]).tolist()
    [[0, 1], [1, 0]]
    """
    height, width = masks[0].shape
    same = [
        mask
        if mask.shape == (height, width)
        else np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        for mask in masks
    ]
    return np.block([[same[0], same[1]], [same[2], same[3]]])
