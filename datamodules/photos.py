"""Photos of one's own: a file, a folder, a pattern or a CSV, each image with the name of its object.

Unlike a benchmark's images, photos are turned as people see them (EXIF), a file that can't be read is left out with a
reason, and a large one may be cut into tiles. B images, S side of the model's input, T tiles.
"""

import csv
import glob
import importlib
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from datamodules.base import AnomalyDataModule
from datamodules.dataset import Batch, Sample
from datamodules.errors import UserError
from datamodules.images import UNREADABLE, open_image
from datamodules.options import as_text, check_line
from datamodules.records import IMAGE_SUFFIXES, Record, files_below
from datamodules.samplers import Filler
from datamodules.transforms import normalise, squash_image

PHOTO_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
UNSUPPORTED = (".heic", ".heif", ".avif", ".dng", ".cr2", ".nef", ".arw")
"""What cameras write and Pillow can't read: such a file is named, not passed over."""
_TRUTH = ("ground_truth", "ground truth", "groundtruth", "masks")
"""Folders of a benchmark's layout that hold no photos."""
MOST_TILES, MOST_PIXELS = 5000, 2e8  # of an image: more would fill the memory
ANIMATED = "pictures; the first is used"
PHOTOS = "photos"
_COLUMNS = ("image_path", "category")


class Photos(AnomalyDataModule):
    """The images of a source, unlabelled.

    Args:
        root: the source: an image, a folder, a pattern such as ``photos/*.jpg``, or a CSV with the columns
            ``image_path`` (below the CSV's folder, or absolute) and, if wanted, ``category``.
        category: what the object is called, in any language; None for the name of the folder below the source in which
            an image lies, and for an image in no such folder, that of its own folder.
        tile: side of the tiles, in pixels of the image, into which a larger image is cut; None for no tiles.
        overlap: the share of a tile that the next one covers too, at least 0, below 1.
        data_set: the class of the data set whose prompts' settings are used, such as ``datamodules.visa.VisA``; None
            for none's.
        **options: see :class:`datamodules.base.AnomalyDataModule`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("metal nut/1.png", "cup/1.png", "cup/2.png"):
    ...         Path(folder, name).parent.mkdir(exist_ok=True)
    ...         Image.new("RGB", (30, 20)).save(Path(folder, name))
    ...     print(Photos(folder).image_names)
    ...     print(Photos(f"{folder}/cup/1.png", category="mug").image_names)
    [('cup', 'cup/1.png'), ('cup', 'cup/2.png'), ('metal nut', 'metal nut/1.png')]
    [('mug', '1.png')]
    """

    key: ClassVar[str] = "source"  # of the configuration, for error messages
    splits = ("test",)
    layout = "images"
    source = "Give an image, a folder, a pattern such as 'photos/*.jpg', or a CSV with a column image_path"
    skips_unreadable = True
    is_upright = True

    def __init__(
        self,
        root: str | Path,
        category: str | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        data_set: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        check_tiles(tile, overlap)
        self.place = self.root
        self.category = None if category is None else as_text("category", category)
        if self.category is not None:
            check_line(self.category)
        self.tile, self.overlap = tile, overlap
        self.data_set = data_set
        self.says_categories = False  # whether a CSV names the categories
        self._warnings = Warnings()
        self.name = self.title = self.place.stem if self.place.suffix == ".csv" else self.place.name or "photos"

    @property
    def prompt_set(self) -> str:
        """The name of the experiment's data set, whose settings count for the prompts of these photos too."""
        if self.data_set is None:
            return PHOTOS
        module, _, name = self.data_set.rpartition(".")
        return str(getattr(getattr(importlib.import_module(module), name, None), "name", None) or PHOTOS)

    @property
    def loaded_together(self) -> int:
        """Photos of a batch: one with its tiles, which make batches of their own."""
        return 1 if self.tile else self.batch_size

    @cached_property
    def _found(self) -> dict[str, list[Record]]:
        """Category -> its images, in the order in which the source names them. Sets ``root``."""
        named = list(self._named())
        self.says_categories = any(own for _, own in named)
        if not named:
            raise UserError(f"Expected images in {self.key}={self.place}, but found none. {self.source}")
        paths = [path.absolute() for path, _ in named]
        self.root = self._root_of(paths)
        found: dict[str, dict[Path, Record]] = {}
        twice = 0
        for path, (_, own) in zip(paths, named, strict=True):
            category = self.category or own or self._folder_of(path)
            of_category = found.setdefault(category, {})
            twice += path in of_category
            of_category.setdefault(path, Record(path, category, None, None))
        if twice:
            warnings.warn(f"{twice} images of {self.place} are named twice; each counts once", stacklevel=2)
        return {category: list(records.values()) for category, records in found.items()}

    def _named(self) -> Iterator[tuple[Path, str | None]]:
        """The images that the source names, each with its category if the source says one."""
        text = str(self.place)
        if self.place.is_dir():
            yield from ((path, None) for path in _photos_below(self.place))
        elif self.place.suffix.lower() == ".csv":
            yield from _listed(self.place)
        elif self.place.is_file():
            yield self.place, None
        elif glob.has_magic(text):
            matches = (Path(match) for match in sorted(glob.glob(text, recursive=True)))  # noqa: PTH207 - any pattern
            yield from ((path, None) for path in matches if path.is_file() and _is_photo(path))
        else:
            raise UserError(f"Expected images in {self.key}={self.place}, but there is no such file or folder")

    def _root_of(self, paths: Sequence[Path]) -> Path:
        """The folder that the images' names are relative to."""
        place = self.place.absolute()
        if place.is_dir():
            return place
        if self.place.suffix.lower() == ".csv" or place.is_file():
            root = place.parent
        else:  # a pattern: the folders in front of its first wildcard
            first = next(i for i, part in enumerate(self.place.parts) if glob.has_magic(part))
            root = Path(*self.place.parts[:first]).absolute()
        if all(path.is_relative_to(root) for path in paths):
            return root
        try:
            return Path(os.path.commonpath([path.parent for path in paths]))
        except ValueError as error:  # of two drives
            raise UserError(f"Expected the images of {self.place} to lie on one disk, but they do not") from error

    def _folder_of(self, path: Path) -> str:
        """The name of the folder below the source that an image lies in."""
        parts = path.relative_to(self.root).parts
        return parts[0] if len(parts) > 1 else path.parent.name or "object"

    @property
    def available_categories(self) -> list[str]:
        """The categories of the source, sorted."""
        return sorted(self._found)

    def find_categories(self) -> list[str]:
        """The same."""
        return self.available_categories

    def read_category(self, category: str) -> list[Record]:
        """The images of a category, in the order of the source."""
        return self._found[category]

    def dataset(self, role: str, records: Sequence[Record]) -> "PhotoDataset":  # type: ignore[override]
        """The samples of records."""
        del role
        transform = PhotoTransform(self.image_size, self.mean, self.std, self.tile, self.overlap)
        return PhotoDataset(records, self.root, transform, self.bits, self._warnings, self.is_upright)

    def loader(self, role: str, dataset: Any, batch_sampler: Any = None, collate_fn: Any = None) -> DataLoader[Sample]:
        """Batches of samples, of which some may be of photos that can't be read."""
        return super().loader(role, dataset, batch_sampler, collate_fn or collate_photos)


class Warnings:
    """Tells each kind of thing that is odd about photos once, and not once a photo or a worker.

    >>> with warnings.catch_warnings(record=True) as told:
    ...     warnings.simplefilter("always")
    ...     tell = Warnings()
    ...     tell("a.gif holds 3 pictures; the first is used")
    ...     tell("b.gif holds 2 pictures; the first is used")
    >>> len(told)
    1
    """

    def __init__(self) -> None:
        self._told = multiprocessing.Array("b", 2)

    def __call__(self, line: str) -> None:
        """Tell it, if nothing of its kind was told."""
        kind = int(ANIMATED in line)
        with self._told.get_lock():
            if not self._told[kind]:
                self._told[kind] = True
                rank_zero_warn(line)


class PhotoDataset(Dataset[Sample]):
    """The samples of photos: what :class:`PhotoTransform` gives, with ``category`` and ``image_path``.

    The sample of a photo that can't be read has ``unreadable``, why it can't, instead of the image.

    Args:
        records: the photos.
        root: that ``image_path`` is relative to.
        transform: from a photo to tensors.
        bits: of 16-bit files, see :func:`datamodules.images.open_image`.
        warn: is called with a line of text about a photo that is read, but perhaps not as meant.
        is_upright: whether they are turned as their EXIF tag says.
    """

    def __init__(
        self,
        records: Sequence[Record],
        root: Path,
        transform: "PhotoTransform",
        bits: int | None,
        warn: Callable[[str], None],
        is_upright: bool = True,
    ) -> None:
        self.records = records
        self.root = root
        self.transform = transform
        self.bits = bits
        self.warn = warn
        self.is_upright = is_upright

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        sample: Sample = {
            "category": record.category,
            "image_path": record.image_path.relative_to(self.root).as_posix(),
        }
        try:
            sample |= self.transform(open_photo(record.image_path, self.bits, self.warn, self.is_upright))
        except UserError as error:
            sample["unreadable"] = str(error)
        if isinstance(index, Filler):
            sample["is_filler"] = True
        return sample


class PhotoTransform:
    """A photo -> what the model sees of it: the whole, and its tiles if it is larger than one.

    Args:
        size: S.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        tile: side of a tile in pixels of the photo; None for no tiles.
        overlap: the share of a tile that the next one covers too.

    >>> sample = PhotoTransform(24, (0, 0, 0), (1, 1, 1), tile=100)(Image.new("RGB", (180, 60)))
    >>> sample["image"].shape, sample["size"], sample["boxes"].tolist()
    (torch.Size([3, 24, 24]), (60, 180), [[0, 0, 100, 60], [80, 0, 180, 60]])
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> None:
        check_tiles(tile, overlap)
        self.size = size
        self.mean = np.array(mean, np.float32)  # (3,)
        self.std = np.array(std, np.float32)  # (3,)
        self.tile, self.overlap = tile, overlap

    def __call__(self, photo: Image.Image) -> Sample:
        """Apply it.

        Returns:
            ``image`` (3, S, S) float32, normalised, and ``size`` (height, width); of a photo that has several tiles
            also ``tiles`` (T, S, S, 3) uint8, RGB, and ``boxes`` (T, 4) int64: left, top, right, bottom.
        """
        whole = squash_image(photo, self.size)
        sample: Sample = {
            "image": torch.from_numpy(normalise(whole, self.mean, self.std)),
            "size": (photo.height, photo.width),
        }
        boxes = tile_boxes(photo.height, photo.width, self.tile, self.overlap) if self.tile else []
        pixels = photo.height * photo.width * (self.size / (self.tile or self.size)) ** 2
        if len(boxes) > MOST_TILES or (len(boxes) > 1 and pixels > MOST_PIXELS):
            raise UserError(
                f"an image of {photo.width}x{photo.height} pixels has {len(boxes)} tiles of {self.tile} pixels, a map "
                f"of {pixels / 1e6:.0f} million; take a larger tile or a smaller overlap"
            )
        if len(boxes) > 1:
            # Of one byte a value, since there may be many; they are normalised batch by batch.
            sample["tiles"] = torch.from_numpy(np.stack([squash_image(photo.crop(box), self.size) for box in boxes]))
            sample["boxes"] = torch.tensor(boxes)
        return sample


def check_tiles(tile: int | None, overlap: float) -> None:
    """Check the options of tiles.

    >>> check_tiles(518, 1.0)
    Traceback (most recent call last):
    datamodules.errors.UserError: Expected overlap to be at least 0 and below 1, such as 0.2, but got 1.0
    """
    if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 16):
        raise UserError(f"Expected tile to be null or a number of pixels, 16 or more, but got {tile!r}")
    if not 0 <= overlap < 1:
        raise UserError(f"Expected overlap to be at least 0 and below 1, such as 0.2, but got {overlap}")


def tile_boxes(height: int, width: int, tile: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """The tiles of an image, row by row, as (left, top, right, bottom): equally spread, none leaves the image.

    All tiles of an image have one size; a side of the image that is shorter than a tile is one tile's side.

    >>> tile_boxes(60, 180, tile=100, overlap=0.2)
    [(0, 0, 100, 60), (80, 0, 180, 60)]
    """
    tops, high = _starts(height, tile, overlap)
    lefts, wide = _starts(width, tile, overlap)
    return [(left, top, left + wide, top + high) for top in tops for left in lefts]


def _starts(length: int, tile: int, overlap: float) -> tuple[list[int], int]:
    """Where the tiles of a side begin, and how long they are."""
    if length <= tile:
        return [0], length
    step = max(int(tile * (1 - overlap)), 1)
    count = -(-(length - tile) // step) + 1
    return [round(number * (length - tile) / (count - 1)) for number in range(count)], tile


def open_photo(
    path: Path, bits: int | None = None, warn: Callable[[str], None] = warnings.warn, is_upright: bool = True
) -> Image.Image:
    """Read a photo as people see it: turned as its EXIF tag says, the first picture of an animation.

    Args:
        path: the file.
        bits: of a 16-bit file, see :func:`datamodules.images.open_image`.
        warn: is called with a line of text about a file that is read, but perhaps not as meant.
        is_upright: False to leave it as it is stored.

    Returns:
        A Pillow image of 8 bits, mode ``L`` or ``RGB``.

    Raises:
        UserError: the file can't be read, or is of a format that is not supported, such as HEIC.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     turned = Image.Exif()
    ...     turned[0x0112] = 6  # stored lying, to be seen upright
    ...     Image.new("RGB", (30, 20)).save(Path(folder, "a.jpg"), exif=turned)
    ...     print(open_photo(Path(folder, "a.jpg")).size)
    (20, 30)
    """
    if path.suffix.lower() in UNSUPPORTED:
        raise UserError(f"{path}: {path.suffix[1:].upper()} is not supported; convert it to PNG or JPEG")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    image = open_image(path, bits, warn)
    try:
        with Image.open(path) as header:
            frames, orientation = getattr(header, "n_frames", 1), header.getexif().get(0x0112, 1)
    except (*UNREADABLE, TypeError) as error:
        raise UserError(f"{path}: its EXIF tags can't be read ({error}); write the file again without them") from error
    if frames > 1:
        warn(f"{path} holds {frames} {ANIMATED}")
    if orientation in (None, 1) or not is_upright:
        return image
    image.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(image)


def collate_photos(samples: Sequence[Sample]) -> Batch:
    """Samples -> ``image`` (B, 3, S, S), and lists of B ``category``, ``image_path``, ``size``, ``tiles``, ``boxes``.

    Photos that can't be read are not among them: ``unreadable`` lists (category, image path, reason) of each. ``tiles``
    and ``boxes`` of a photo that is one tile are None.

    >>> image = {"image": torch.zeros(3, 8, 8), "size": (20, 30), "category": "cup", "image_path": "a.jpg"}
    >>> batch = collate_photos([image, {"category": "cup", "image_path": "b.jpg", "unreadable": "cut off"}])
    >>> batch["image"].shape, batch["category"], batch["unreadable"]
    (torch.Size([1, 3, 8, 8]), ['cup'], [('cup', 'b.jpg', 'cut off')])
    """
    good = [sample for sample in samples if "unreadable" not in sample]
    batch: Batch = {key: [one.get(key) for one in good] for key in (*_COLUMNS, "size", "tiles", "boxes")}
    if good:
        batch["image"] = torch.stack([one["image"] for one in good])
    if any("is_filler" in one for one in samples):
        batch["is_filler"] = [True]
    bad = [(one["category"], one["image_path"], one["unreadable"]) for one in samples if "unreadable" in one]
    return batch | ({"unreadable": bad} if bad else {})


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in (*PHOTO_SUFFIXES, *UNSUPPORTED) and path.name[0] != "."


def _photos_below(folder: Path) -> list[Path]:
    """All photos below a folder, sorted; the masks of a benchmark's layout are none."""
    paths = sorted(path for path in files_below(folder) if _is_photo(path))
    photos = [path for path in paths if not _is_truth(path.relative_to(folder).parts[:-1])]
    if len(photos) < len(paths):
        warnings.warn(
            f"{len(paths) - len(photos)} images below {folder} lie in folders of ground truth and are left out",
            stacklevel=2,
        )
    return photos


def _is_truth(folders: Sequence[str]) -> bool:
    return any(name.lower() in _TRUTH or name.lower().endswith("_groundtruth") for name in folders)


def _listed(path: Path) -> Iterator[tuple[Path, str | None]]:
    """The images that a CSV names."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            if "image_path" not in (rows.fieldnames or ()):
                found = ", ".join(rows.fieldnames or ()) or "none"
                raise UserError(f"Expected a column image_path (and category, if wanted) in {path}, but found {found}")
            for row in rows:
                if not row["image_path"]:
                    raise UserError(f"Expected an image_path in line {rows.line_num} of {path}, but it is empty")
                image = Path(os.path.normpath(path.parent.absolute() / row["image_path"]))
                category = row.get("category") or None
                if category is not None:
                    check_line(category, f" in line {rows.line_num} of {path}")
                yield image, category
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Expected a CSV in UTF-8, but can't read {path} ({error})") from error
