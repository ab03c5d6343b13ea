"""Reference images: a few images without defects of each category, for few-shot methods. K references, S side."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from datamodules.paths import sha256_of
from datamodules.photos import Photos
from datamodules.records import NORMAL, Record

_GOOD = ("good", "ok", "normal", "train", "images", "references")  # folders that say nothing about the object


class ReferencePhotos(Photos):
    """The images of ``references=PATH``, found as :class:`datamodules.photos.Photos` finds those of a source.

    Args:
        root: see there.
        is_upright: whether they are turned as their EXIF tag says, which is done if the tested images are, too.
        **options: see there.
    """

    key = "references"

    def __init__(self, root: str | Path, is_upright: bool = True, **options: Any) -> None:
        super().__init__(root, **options)
        self.is_upright = is_upright

    @property
    def is_unnamed(self) -> bool:
        """Whether nothing says what they show: they lie in one folder, and it is given itself, or is called ``good``.

        A CSV without a column of categories says nothing by its images' folder either.
        """
        if self.says_categories or len(self.category_names) > 1:
            return False
        folders = {record.image_path.relative_to(self.root).parts[0] for record in self.records}
        return (
            self.place.suffix.lower() == ".csv"
            or self.category_names[0] in _GOOD
            or all(Path(self.root, name).is_file() for name in folders)
        )


class References:
    """The references of each category: which files they are, and their pixels.

    Args:
        data: loads them, as it would load test images.
        records: the references by category.
        unnamed: whether they are of one category whose name nobody has said: they count for the one that is tested.
        drawn: how they were drawn, for provenance; empty if they were given.

    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (30, 20)).save(Path(folder, "good.png"))
    ...     references = given_references(folder, image_size=16)
    ...     print(references.images_of("cup").shape, references.number)
    torch.Size([1, 3, 16, 16]) 1
    """

    def __init__(
        self,
        data: AnomalyDataModule,
        records: Mapping[str, Sequence[Record]],
        unnamed: bool = False,
        drawn: Mapping[str, Any] | None = None,
    ) -> None:
        self.data = data
        self.records = dict(records)
        self.unnamed = unnamed
        self.drawn = dict(drawn or {})

    def check(self, categories: Iterable[str]) -> None:
        """Refuse categories that have no references.

        Args:
            categories: all that are tested.

        Raises:
            UserError: there are some, or several where nothing says which of them the references are of.
        """
        wanted = dict.fromkeys(categories)
        if self.unnamed and len(wanted) > 1:
            raise UserError(
                f"Expected references of each category, but nothing says which of {', '.join(wanted)} those in "
                f"{self.data.root} are of; put them into folders called as the categories, or give a CSV with a "
                "column category"
            )
        for category in wanted:
            self.records_of(category)

    def records_of(self, category: str) -> Sequence[Record]:
        """The references of a category.

        Raises:
            UserError: there are none.
        """
        if self.unnamed:
            (own,) = self.records.values()
            return own
        if category not in self.records:
            raise UserError(
                f"Expected references of {category}, but there are some of {', '.join(self.records)}; name the folders "
                "below references=PATH as the categories, or give a CSV with a column category"
            )
        return self.records[category]

    def images_of(self, category: str) -> torch.Tensor:
        """The pixels of a category's references, normalised as the test images: (K, 3, S, S).

        Raises:
            UserError: one can't be read.
        """
        records = self.records_of(category)
        samples = [self.data.dataset("test", records)[index] for index in range(len(records))]
        for sample in samples:
            if "unreadable" in sample:
                raise UserError(f"references: {sample['unreadable']}")
        return torch.stack([sample["image"] for sample in samples])

    @property
    def number(self) -> int | str:
        """K, or the smallest and the largest of it, such as ``2 to 5``."""
        counts = sorted(len(records) for records in self.records.values())
        return counts[0] if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"

    @cached_property
    def hashes(self) -> dict[Path, str]:
        """The hash of each file."""
        return {record.image_path: sha256_of(record.image_path) for own in self.records.values() for record in own}

    @property
    def sha256(self) -> str:
        """The hash of the files' content, category by category, wherever they lie; a single one has no name here."""
        lines = [
            f"{'' if len(self.records) == 1 else category} {self.hashes[record.image_path]}"
            for category, own in sorted(self.records.items())
            for record in own
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """For provenance: each file with its hash."""
        return {
            "sha256": self.sha256,
            **self.drawn,
            "root": str(self.data.root),
            "categories": {
                category: [
                    {"image_path": self.data.name_of(record)[1], "sha256": self.hashes[record.image_path]}
                    for record in own
                ]
                for category, own in self.records.items()
            },
        }

    def refuse_tested(self, records: Iterable[Record]) -> None:
        """Refuse images that are references, under any name.

        Raises:
            UserError: there are some.
        """
        for path, own in self._tested(records):
            raise UserError(
                f"{path} is the reference image {own}, so its result would mean nothing; give other references, or "
                "set allow_leakage=true"
            )

    def warn_of_tested(self, records: Iterable[Record]) -> None:
        """Say how many images are references, under any name: they look better than they would to other references."""
        tested = list(self._tested(records))
        if tested:
            rank_zero_warn(
                f"images that are references themselves: {len(tested)}, such as {tested[0][0]}; their scores are lower "
                "than they would be otherwise"
            )

    def _tested(self, records: Iterable[Record]) -> Iterator[tuple[Path, Path]]:
        """The images that are references, each with the reference that it is."""
        by_content = {content: path for path, content in self.hashes.items()}
        sizes = {path.stat().st_size for path in self.hashes}
        for record in records:
            path = record.image_path
            if path.is_file() and path.stat().st_size in sizes and (own := by_content.get(sha256_of(path))):
                yield path, own


def given_references(path: str | Path, **options: Any) -> References:
    """All images of a folder, a pattern or a CSV.

    Images in folders below it are of the categories that these are called.

    Args:
        path: as :class:`datamodules.photos.Photos` takes it.
        **options: see :class:`ReferencePhotos`.

    Raises:
        UserError: there are none, or a CSV names one that is not there.
    """
    photos = ReferencePhotos(path, **options)
    for record in photos.records:
        if not record.image_path.is_file():
            raise UserError(
                f"Expected the reference image {record.image_path}, but there is no such file; correct {path}"
            )
    records = {name: photos.read_category(name) for name in photos.category_names}
    return References(photos, records, photos.is_unnamed)


def drawn_references(
    data: AnomalyDataModule, categories: Sequence[str], shots: int, seed: int, replacement: bool = False
) -> References:
    """A few normal images of each category.

    An image's place in the draw is the hash of its name, so a category's references depend on neither the other
    categories nor the method, and the first of four shots are those of two.

    Args:
        data: the train split.
        categories: of the images that are tested.
        shots: K.
        seed: another one draws others.
        replacement: whether an image may be drawn again.

    Raises:
        UserError: there is no train split, or a category has too few images.

    >>> from tempfile import TemporaryDirectory
    >>> from datamodules.mvtec import MVTec
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("train/good/0.png", "train/good/1.png", "train/good/2.png", "test/good/0.png"):
    ...         Path(folder, "cup", name).parent.mkdir(parents=True, exist_ok=True)
    ...         Path(folder, "cup", name).touch()
    ...     references = drawn_references(MVTec(folder, split="train"), ["cup"], shots=2, seed=0)
    ...     print([record.image_path.name for record in references.records["cup"]])
    ['2.png', '1.png']
    """
    if "train" not in data.splits:
        raise UserError(f"{data.title} has no train split to draw {shots} references from; give references=PATH")
    records = {}
    for category in categories:
        normal = [record for record in data.records if (record.category, record.label) == (category, NORMAL)]
        if len(normal) < (1 if replacement else shots):
            raise UserError(
                f"shots={shots} takes as many normal images of {category} in the train split of {data.title}, but "
                f"there are {len(normal)} below {data.root}; take fewer, or give references=PATH"
            )
        records[category] = _draw(data, category, normal, shots, seed, replacement)
    return References(data, records, drawn={"shots": shots, "seed": seed, "replacement": replacement})


def _draw(
    data: AnomalyDataModule, category: str, records: Sequence[Record], shots: int, seed: int, replacement: bool
) -> list[Record]:
    if replacement:
        return [records[_hash(seed, category, str(number)) % len(records)] for number in range(shots)]
    return sorted(records, key=lambda record: _hash(seed, category, data.name_of(record)[1]))[:shots]


def _hash(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(map(str, parts)).encode()).digest(), "big")
