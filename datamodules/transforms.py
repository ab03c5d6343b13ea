"""Decoded images and masks -> tensors at the sizes that a run uses. S side of the model's input, N of the masks."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from datamodules.errors import UserError
from datamodules.images import UInt8Array

if TYPE_CHECKING:
    import albumentations as A

FloatArray = npt.NDArray[np.float32]

TRANSFORMS = ("default", "augment", "mosaic")


class Transform:
    """Resize an image and its mask, augment them if asked for, and normalise the image.

    Args:
        name: ``default``; ``augment``: image and mask are moved together, and colours change mildly; ``mosaic``: see
            :mod:`datamodules.mosaic`, the rest as by default.
        size: S.
        mask_size: N; None leaves a mask at its own size.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].

    Raises:
        UserError: unknown name.

    >>> transform = Transform("default", size=24, mask_size=24, mean=(0, 0, 0), std=(1, 1, 1))
    >>> sample = transform(Image.new("RGB", (60, 40), "white"), np.ones((40, 60), np.uint8))
    >>> sample["image"].shape, sample["image"].max().item()
    (torch.Size([3, 24, 24]), 1.0)
    >>> sample["mask"].shape, sample["mask"].min().item()
    (torch.Size([24, 24]), 1)
    """

    def __init__(
        self, name: str, size: int, mask_size: int | None, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        check_transforms(name)
        self.name = name
        self.size = size
        self.mask_size = mask_size
        self.mean = np.array(mean, np.float32)  # (3,)
        self.std = np.array(std, np.float32)  # (3,)
        self.augmentation = _augmentation() if name == "augment" else None

    def __call__(
        self, image: Image.Image, mask: UInt8Array | None = None, seed: Sequence[int] = (0,)
    ) -> dict[str, Tensor]:
        """Apply it; the augmentation depends on the seed alone.

        Args:
            image: of any size, ``RGB`` or ``L``.
            mask: (h, w) uint8 {0, 1}, or None.
            seed: of the augmentation.

        Returns:
            ``image`` (3, S, S) float32, and ``mask`` (N, N) uint8 {0, 1} if there is one.
        """
        arrays: dict[str, Any] = {"image": squash_image(image, self.size)}
        if mask is not None:
            arrays["mask"] = mask if self.mask_size is None else squash_mask(mask, self.mask_size)
        if self.augmentation is not None:
            _start_stream(self.augmentation, seed)
            arrays = self.augmentation(**arrays)
        arrays["image"] = normalise(arrays["image"], self.mean, self.std)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def check_transforms(name: str) -> None:
    """Raise a UserError that lists the valid names when ``name`` is none of them.

    >>> check_transforms("strong")
    Traceback (most recent call last):
    datamodules.errors.UserError: Expected transforms to be one of default, augment, mosaic, but got 'strong'
    """
    if name not in TRANSFORMS:
        raise UserError(f"Expected transforms to be one of {', '.join(TRANSFORMS)}, but got {name!r}")


def squash_image(image: Image.Image, size: int) -> UInt8Array:
    """Resize to (S, S, 3) uint8 without keeping the aspect ratio, bicubic and antialiased, as the reference does.

    Pillow does it, since OpenCV does not antialias, which changes an image by up to 108 of 255. The channels of a
    greyscale image are equal, so one is resized for all three.

    >>> squash_image(Image.new("L", (60, 40), 7), 2).tolist()
    [[[7, 7, 7], [7, 7, 7]], [[7, 7, 7], [7, 7, 7]]]
    """
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC).convert("RGB"))


def squash_mask(mask: UInt8Array, size: int) -> UInt8Array:
    """Resize (h, w) {0, 1} to (N, N) {0, 1}: a pixel stays anomalous when more than half of what it averages is.

    >>> squash_mask(np.array([[0, 0, 1, 1]], np.uint8), 2).tolist()
    [[0, 1], [0, 1]]
    """
    if mask.shape == (size, size):
        return mask
    grey = Image.fromarray(mask * 255).resize((size, size), Image.Resampling.BILINEAR)
    return (np.asarray(grey) > 127).astype(np.uint8)


def normalise(image: UInt8Array, mean: FloatArray, std: FloatArray) -> FloatArray:
    """(S, S, 3) uint8 -> (3, S, S) float32: (image / 255 - mean) / std per channel.

    >>> normalise(np.full((1, 1, 3), 255, np.uint8), np.float32([0, 0, 0.5]), np.float32([1, 0.5, 0.5])).ravel()
    array([1., 2., 1.], dtype=float32)
    """
    channels = np.moveaxis(image, -1, 0).astype(np.float32, order="C")  # (3, S, S)
    channels -= 255 * mean[:, None, None]
    channels *= 1 / (255 * std[:, None, None])
    return channels


def _augmentation() -> A.Compose:
    """Of small squares; a reflected border shows texture, and its defects, in image and mask."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network for a newer release
    # Only here, since it takes a quarter of a second, and most runs don't augment.
    import albumentations as A

    affine = {"scale": (0.9, 1.1), "translate_percent": (-0.05, 0.05), "rotate": (-15, 15)}
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.RandomRotate90(p=0.5),
            A.Affine(**affine, border_mode=cv2.BORDER_REFLECT_101, mask_interpolation=cv2.INTER_NEAREST, p=0.5),
            A.ColorJitter(brightness=(0.9, 1.1), contrast=(0.9, 1.1), saturation=(0.9, 1.1), hue=(-0.02, 0.02), p=0.5),
        ]
    )


def _start_stream(augmentation: A.Compose, seed: Sequence[int]) -> None:
    """Start the random stream of an augmentation afresh.

    albumentations takes no notice of any global seed, and its ``set_random_seed`` gives every step an own generator
    with one and the same seed, so that all flips come together: here the steps share one generator.
    """
    generator = np.random.default_rng(seed)
    augmentation.set_random_state(generator, random.Random(int(generator.integers(2**63))))
