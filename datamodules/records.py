"""What a data set is made of: one record an image, and the helpers that turn folders into records."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

NORMAL, ANOMALOUS = 0, 1


class Record(NamedTuple):
    """One image on disk; nothing of it has been read yet.

    Attributes:
        image_path: below the data set's root.
        category: the object's name as the data set spells it (``metal_nut``).
        label: 0 normal, 1 anomalous, None unknown.
        mask_path: the ground truth. A normal image of a data set with masks has None and means an all-zero mask.
    """

    image_path: Path
    category: str
    label: int | None
    mask_path: Path | None


def list_images(folder: Path) -> list[Path]:
    """All images below ``folder``, at any depth, sorted by path; empty when there is no such folder.

    Files that start with a dot are left out: macOS leaves a ``._000.png``, which is no image, beside each ``000.png``.
    """
    paths = (Path(parent) / name for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file())


def stem_below(path: Path, folder: Path) -> str:
    """The path relative to ``folder`` without its suffix: ``broken_large/000``. Images and masks meet by it."""
    return path.relative_to(folder).with_suffix("").as_posix()


def pair_masks(mask_dir: Path, stems: Iterable[str]) -> dict[str, Path]:
    """Pair the masks below ``mask_dir`` with images by name, never by position.

    Args:
        mask_dir: holds ``<stem>.<any image suffix>`` or ``<stem>_mask.<any image suffix>`` for an image.
        stems: of the images that may have a mask, see :func:`stem_below`.

    Returns:
        Image stem -> mask. An image without a mask is not among the keys.

    Raises:
        UserError: a mask belongs to no image, or an image has two masks.
    """
    known = set(stems)
    masks: dict[str, Path] = {}
    orphans: list[Path] = []
    for path in list_images(mask_dir):
        stem = stem_below(path, mask_dir)
        if stem not in known:
            stem = stem.removesuffix("_mask")
        if stem not in known:
            orphans.append(path)
        elif stem in masks:
            raise UserError(f"Expected one mask for image {stem}, but found {masks[stem]} and {path}; remove one")
        else:
            masks[stem] = path
    if orphans:
        raise UserError(
            f"Expected an image for each mask below {mask_dir}, but {len(orphans)} of {len(orphans) + len(masks)} "
            f"have none, the first is {orphans[0]}; add the images or remove the masks"
        )
    return masks
