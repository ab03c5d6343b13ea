"""Arrays -> tensors at the model's size, as albumentations pipelines. B images, S model size, N evaluation size."""

import os
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from datamodules.errors import UserError
from datamodules.images import UInt8Array

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network for a newer release

import albumentations as A
from albumentations.pytorch import ToTensorV2

# Its threads would compete with the loader's workers, and hang in a worker that is forked from them.
cv2.setNumThreads(0)


class PILSquash(A.DualTransform):  # type: ignore[misc]
    """Resize to a square with Pillow, without keeping the aspect ratio, as the reference does through torchvision.

    Not albumentations' own Resize: OpenCV does not antialias, which changes an image by up to 108 of 255.

    Args:
        size: S; the image becomes (S, S, 3), bicubic.
        mask_size: N; the mask {0, 1} becomes (N, N) {0, 1}, or keeps its size when None.
    """

    def __init__(self, size: int, mask_size: int | None) -> None:
        super().__init__(p=1.0)
        self.size = size
        self.mask_size = mask_size

    def apply(self, img: UInt8Array, **params: Any) -> UInt8Array:
        """(H, W, 3) uint8 -> (S, S, 3) uint8."""
        resized = Image.fromarray(img).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(resized)

    def apply_to_mask(self, mask: UInt8Array, **params: Any) -> UInt8Array:
        """(H, W) {0, 1} -> (N, N) {0, 1}: a pixel stays anomalous when more than half of what it averages is."""
        if self.mask_size is None:
            return mask
        grey = Image.fromarray(mask * 255).resize((self.mask_size, self.mask_size), Image.Resampling.BILINEAR)
        return (np.asarray(grey) / 255 > 0.5).astype(np.uint8)


def _augmentations() -> list[A.BasicTransform]:
    # After the squash, on small uint8 squares; a reflected border shows texture, and its defects, in image and mask.
    affine = {"scale": (0.9, 1.1), "translate_percent": (-0.05, 0.05), "rotate": (-15, 15)}
    return [
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
        A.RandomRotate90(p=0.5),
        A.Affine(**affine, border_mode=cv2.BORDER_REFLECT_101, mask_interpolation=cv2.INTER_NEAREST, p=0.5),
        A.ColorJitter(brightness=(0.9, 1.1), contrast=(0.9, 1.1), saturation=(0.9, 1.1), hue=(-0.02, 0.02), p=0.5),
    ]


TRANSFORMS = {"default": list, "augment": _augmentations}


def check_transforms(name: str) -> None:
    """Raise a UserError that lists the valid names when ``name`` is none of them."""
    if name not in TRANSFORMS:
        raise UserError(f"Expected transforms to be one of {', '.join(TRANSFORMS)}, but got {name!r}")


def build_transform(
    name: str, size: int, mask_size: int | None, mean: Sequence[float], std: Sequence[float]
) -> A.Compose:
    """Build the pipeline for ``transform(image=(H, W, 3) uint8, mask=(H, W) uint8 {0, 1})``; the mask may be left out.

    Args:
        name: ``default`` (resize and normalise) or ``augment`` (image and mask moved together, colours changed mildly).
        size: S of the image.
        mask_size: N of the mask, None to leave it as it is on disk.
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].

    Returns:
        A transform that returns ``image`` (3, S, S) float32 and ``mask`` (N, N) uint8 {0, 1}.

    Raises:
        UserError: unknown name.
    """
    check_transforms(name)
    steps = [PILSquash(size, mask_size), *TRANSFORMS[name](), A.Normalize(mean=mean, std=std), ToTensorV2()]
    return A.Compose(steps)


def seed_transform(transform: A.Compose, seed: Sequence[int]) -> None:
    """Start the transform's random stream afresh from ``seed``.

    albumentations takes no notice of any global seed, and its ``set_random_seed`` gives every step an own generator
    with one and the same seed, so that all flips come together: here the steps share one generator.
    """
    generator = np.random.default_rng(seed)
    transform.set_random_state(generator, random.Random(int(generator.integers(2**63))))
