"""What a data set is made of: one record an image, and the helpers that turn folders into records."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

NORMAL, ANOMALOUS = 0, 1


class Record(NamedTuple):
    """One image on disk; nothing of it has been read yet.

    Attributes:
        image_path: below the data set's root.
        category: the object's name as the data set spells it (``metal_nut``).
        label: 0 normal, 1 anomalous, None unknown.
        mask_path: the ground truth. None for a normal image of a data set with masks means an all-zero mask.

    >>> Record(Path("data/cup/good/0.png"), "cup", NORMAL, mask_path=None).category
    'cup'
    """

    image_path: Path
    category: str
    label: int | None
    mask_path: Path | None

    @property
    def files(self) -> list[Path]:
        """The image, and its mask if it has one.

        >>> [path.name for path in Record(Path("a.png"), "cup", ANOMALOUS, Path("a_mask.png")).files]
        ['a.png', 'a_mask.png']
        """
        return [self.image_path] if self.mask_path is None else [self.image_path, self.mask_path]


def list_images(folder: Path) -> list[Path]:
    """All images below ``folder``, at any depth, sorted by path; empty when there is no such folder.

    Files that start with a dot are left out: macOS leaves a ``._000.png``, which is no image, beside each ``000.png``.
    A folder that has several names, by symbolic links, is listed under its real one.

    Raises:
        UserError: a folder can't be read, or what has an image's name is no file.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("b.JPG", "a.png", "notes.txt"):
    ...         Path(folder, name).touch()
    ...     print([path.name for path in list_images(Path(folder))])
    ['a.png', 'b.JPG']
    """
    if not folder.is_dir():
        return []
    paths = [path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    for path in paths:
        if not path.is_file():
            what = "is a link that leads nowhere" if path.is_symlink() and not path.exists() else "is none"
            raise UserError(f"Expected an image file, but {path} {what}; fetch it or remove it")
    return sorted(paths)


def files_below(folder: Path) -> Iterator[Path]:
    """Walk all files at any depth, each folder once; links to folders are followed, but not in circles.

    Raises:
        UserError: a folder can't be read.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "notes.txt").touch()
    ...     print([path.name for path in files_below(Path(folder))])
    ['notes.txt']
    """
    seen: set[Path] = set()
    # With each folder those that it lies in: a link back to one of them would list what is not below it.
    own = frozenset(path.resolve() for path in folder.absolute().parents)
    waiting = deque([(folder, own.union(folder.resolve().parents))])
    while waiting:
        start, above = waiting.popleft()
        for parent, folders, names in os.walk(start, onerror=_refuse_unreadable):
            here = Path(parent).resolve()
            if here in seen or here in above:
                folders.clear()
                continue
            seen.add(here)
            folders.sort()
            # Later, so that what is reached by several names keeps its real one.
            links = [path for path in (Path(parent, name) for name in folders) if path.is_symlink()]
            waiting.extend((link, above.union(here.parents, [here])) for link in links)
            yield from (Path(parent, name) for name in names)


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(
        f"Expected to read all folders below the data set's, but {error.filename} says: {error.strerror}; mend its "
        "permissions or remove it"
    ) from error


def each_file_once(records: Sequence[Record]) -> list[Record]:
    """Leave out the further names that links give an image, and check that each image has one label.

    Where a label is known, an image that is there twice changes the metrics. Without labels it is harmless, and the
    user is only told.

    Raises:
        UserError: one image is listed twice, or has two labels or categories, or two anomalous images have one mask.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "a.png").touch()
    ...     Path(folder, "link.png").symlink_to("a.png")
    ...     records = [Record(Path(folder, name), "cup", NORMAL, None) for name in ("link.png", "a.png")]
    ...     print([record.image_path.name for record in each_file_once(records)])
    ['a.png']
    """
    same_file: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        status = record.image_path.stat()
        same_file.setdefault((status.st_dev, status.st_ino), []).append(record)
    further: list[Record] = []
    for same in same_file.values():
        if len(same) == 1:
            continue
        first, *others = sorted(same, key=_by_name)
        for other in others:
            if first.image_path == other.image_path:
                _complain(same, f"Expected each image once, but {first.image_path} is there {len(same)} times")
            elif (first.category, first.label) != (other.category, other.label):
                _complain(
                    same,
                    f"Expected one category and label an image, but {first.image_path} ({_label(first)}) and "
                    f"{other.image_path} ({_label(other)}) are one file",
                )
            else:
                further.append(other)
    if further and all(record.label is None for record in records):
        rank_zero_warn(
            f"{len(further)} images are there under another name too and count once, the first is "
            f"{further[0].image_path}"
        )
    left_out = set(further)
    kept = [record for record in records if record not in left_out]
    _check_own_masks(kept)
    return kept


def _by_name(record: Record) -> tuple[bool, int, str]:
    """Real names come before links, short ones before long ones."""
    name = str(record.image_path)
    return record.image_path.is_symlink(), len(name), name


def _label(record: Record) -> str:
    return f"{record.category}, {({NORMAL: 'normal', ANOMALOUS: 'anomalous', None: 'no label'})[record.label]}"


def _complain(same: Sequence[Record], line: str) -> None:
    """Refuse an image that is there twice where there are labels, and warn where there are none."""
    if any(record.label is not None for record in same):
        raise UserError(f"{line}; remove one")
    rank_zero_warn(line)


def _check_own_masks(records: Sequence[Record]) -> None:
    owners: dict[Path, Path] = {}
    for record in records:
        if record.label == ANOMALOUS and record.mask_path is not None:
            owner = owners.setdefault(record.mask_path, record.image_path)
            if owner != record.image_path:
                raise UserError(
                    f"Expected a mask of its own for each anomalous image, but {owner} and {record.image_path} share "
                    f"{record.mask_path}; remove one of the images, or rename it and give it a mask"
                )


def stem_below(path: Path, folder: Path) -> str:
    """Name a file by its path relative to ``folder`` without its suffix. Images and masks are paired by it.

    >>> stem_below(Path("bottle/test/broken_large/000.png"), Path("bottle/test"))
    'broken_large/000'
    """
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

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "000_mask.png").touch()
    ...     print({stem: mask.name for stem, mask in pair_masks(Path(folder), ["000", "001"]).items()})
    {'000': '000_mask.png'}
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
