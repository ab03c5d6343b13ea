"""What was trained on what and tested on what: the line that every run begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from src.files import sha256_of
from src.run.results import DataUse


def describe_use(data: AnomalyDataModule) -> DataUse:
    """Which images a data module gives.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from datamodules.folder import Folder
        >>> with TemporaryDirectory() as folder:
        ...     Path(folder, "0.jpg").touch()
        ...     use = describe_use(Folder(folder, category="cup"))
        ...     print(use["categories"], use["images"])
        ['cup'] 1
    """
    held_out, used = list(data.val_categories), data.category_names
    published = set(data.published)
    is_published = not published.isdisjoint(used)
    # Of photos, whose names are the user's own words, the line says all.
    is_everything = published.issubset(used) if is_published else used == data.available_categories
    is_everything &= not data.skips_unreadable
    return DataUse(
        name=data.name,
        title=data.title,
        split=data.split,
        categories=[name for name in used if name not in held_out],
        held_out=held_out,
        images=sum(record.category not in held_out for record in data.records),
        is_whole=is_everything and not held_out,
    )


class SharedImage(NamedTuple):
    """Two files with the same content: a training image, and an image that is tested.

    Example:
        >>> SharedImage(trained="visa/cup/000.JPG", tested="mine/a.jpg").tested
        'mine/a.jpg'
    """

    trained: str
    tested: str


def shared_categories(train_data: AnomalyDataModule, test_data: AnomalyDataModule) -> dict[str, SharedImage]:
    """Find the test categories that have images among the training images, under any name; the first image of each.

    Only files of equal sizes are read, since others can't have the same content.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from datamodules.folder import Folder
        >>> with TemporaryDirectory() as one, TemporaryDirectory() as other:
        ...     for path in (Path(one, "0.jpg"), Path(other, "another_name.jpg")):
        ...         _ = path.write_bytes(b"the same picture")
        ...     print(list(shared_categories(Folder(one, category="cup"), Folder(other, category="mug"))))
        ['mug']
    """
    by_size: dict[int, list[Path]] = {}
    for record in train_data.records:
        by_size.setdefault(record.image_path.stat().st_size, []).append(record.image_path)
    hash_of = cache(sha256_of)
    shared: dict[str, SharedImage] = {}
    for record in test_data.records:
        candidates = by_size.get(record.image_path.stat().st_size, ())
        if record.category not in shared and candidates:
            content = hash_of(record.image_path)
            same = next((path for path in candidates if hash_of(path) == content), None)
            if same is not None:
                shared[record.category] = SharedImage(str(same), str(record.image_path))
    return shared


@dataclass(frozen=True)
class Protocol:
    """A run's training and test data.

    Attributes:
        trainable: whether the model has anything to train.
        trained_on: what it is or was trained on; None if nothing is trained, or if a checkpoint does not say.
        tested_on: the benchmark.
        shared: tested categories of which images are among the training images, and one of these.
        shortcuts: settings under which less is trained or tested than these data hold.
        tests: whether the benchmark is tested at all, after training.
        trained_under: such settings of an earlier training.
        shots: how many reference images each category has, such as 4 or `2 to 5`; 0 for none.

    Example:
        >>> visa = {"name": "visa", "title": "VisA", "split": "test", "categories": ["candle"], "held_out": []}
        >>> Protocol(trainable=False, trained_on=None, tested_on={**visa, "images": 200, "is_whole": False}).line
        'no training (frozen CLIP) -> test VisA (200 images of candle)'
    """

    trainable: bool
    trained_on: DataUse | None
    tested_on: DataUse
    shared: Mapping[str, SharedImage] = field(default_factory=dict)
    shortcuts: Sequence[str] = ()
    tests: bool = True
    trained_under: Sequence[str] = ()
    shots: int | str = 0

    @property
    def line(self) -> str:
        """Such as `train MVTec AD (test split, 1725 images) -> test VisA (2162 images)`."""
        if not self.tests:
            return f"{self._training} -> no test{cut_by(self.shortcuts)}"
        return f"{self._training}{with_references(self.shots)} -> test {self.tested}{cut_by(self.shortcuts)}"

    @property
    def tested(self) -> str:
        """Such as `VisA (2162 images)`."""
        split = "" if self.tested_on["split"] == "test" else f"{self.tested_on['split']} split, "
        return f"{self.tested_on['title']} ({split}{_extent(self.tested_on)})"

    def line_of(self, what: str) -> str:
        """A line for what is done without labels, such as `predict photos (20 images of cup)`."""
        return f"{what} {self.tested}{with_references(self.shots)}"

    @property
    def leaked(self) -> list[str]:
        """The tested categories that were trained or validated on: by data set and name, or by their very images."""
        seen = set(self.shared)
        if self.trained_on is not None and self.trained_on["name"] == self.tested_on["name"]:
            seen.update(self.trained_on["categories"], self.trained_on["held_out"])
        return [name for name in self.tested_on["categories"] if name in seen]

    def refuse_leakage(self) -> None:
        """End a run that would test what was trained on.

        Raises:
            UserError: there is leakage.
        """
        if self.leaked:
            images = [f"{tested} is the training image {trained}" for trained, tested in self.shared.values()]
            raise UserError(
                f"{len(self.leaked)} tested categories of {self.tested_on['title']} belong to the training data too "
                f"({'; '.join([', '.join(self.leaked), *images[:1]])}), so the result would not be zero-shot; train on "
                "another data set or other categories, or set allow_leakage=true"
            )

    def describe(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "line": self.line,
            "trained_on": self.trained_on,
            "tested_on": self.tested_on,
            "leaked_categories": self.leaked,
            "shared_images": {name: image._asdict() for name, image in self.shared.items()},
            "cut_short_by": list(self.shortcuts),
            "training_cut_short_by": list(self.trained_under),
            "shots": self.shots,
        }

    @property
    def _training(self) -> str:
        if not self.trainable:
            return "no training (frozen CLIP)"
        if self.trained_on is None:
            return "trained on unknown data"
        extent = f"{self.trained_on['split']} split, {_extent(self.trained_on)}{cut_by(self.trained_under)}"
        return f"train {self.trained_on['title']} ({extent})"


def cut_by(settings: Sequence[str]) -> str:
    """How a line ends of what was cut short by such settings.

    Example:
        >>> cut_by(["limit_test_batches=2"])
        ', cut short by limit_test_batches=2'
    """
    return f", cut short by {', '.join(settings)}" if settings else ""


def with_references(shots: int | str) -> str:
    """How a line goes on where there are reference images.

    Example:
        >>> with_references(4), with_references("2 to 5"), with_references(0)
        (', 4 reference images a category', ', 2 to 5 reference images a category', '')
    """
    return f", {shots} reference image{'' if shots == 1 else 's'} a category" if shots else ""


def _extent(use: DataUse) -> str:
    names = use["categories"]
    if use["is_whole"]:
        return f"{use['images']} images"
    return f"{use['images']} images of {', '.join(names) if len(names) <= 3 else f'{len(names)} categories'}"
