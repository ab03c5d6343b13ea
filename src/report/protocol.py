"""What was trained on what and tested on what: the line that every run begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from src.results import DataUse


def describe_use(data: AnomalyDataModule) -> DataUse:
    """Which images a data module gives."""
    held_out, used = list(data.val_categories), data.category_names
    published = set(data.published)
    is_published = not published.isdisjoint(used)
    is_everything = published.issubset(used) if is_published else used == data.available_categories
    return DataUse(
        name=data.name,
        title=data.title,
        split=data.split,
        categories=[name for name in used if name not in held_out],
        held_out=held_out,
        images=sum(record.category not in held_out for record in data.records),
        is_whole=is_everything and not held_out,
    )


def shared_categories(train_data: AnomalyDataModule, test_data: AnomalyDataModule) -> list[str]:
    """Categories of the test data of which images are training images too, as files."""
    training_images = {record.image_path.resolve() for record in train_data.records}
    shared = [record.category for record in test_data.records if record.image_path.resolve() in training_images]
    return list(dict.fromkeys(shared))


@dataclass(frozen=True)
class Protocol:
    """A run's training and test data.

    Attributes:
        trainable: whether the model has anything to train.
        trained_on: what it is or was trained on; None if nothing is trained, or if a checkpoint does not say.
        tested_on: the benchmark.
        shared: tested categories of which images are among the training images, under whatever name.
        shortcuts: settings under which less is trained or tested than these data hold.
        tests: whether the benchmark is tested at all, after training.
        trained_under: such settings of an earlier training.
    """

    trainable: bool
    trained_on: DataUse | None
    tested_on: DataUse
    shared: Sequence[str] = ()
    shortcuts: Sequence[str] = ()
    tests: bool = True
    trained_under: Sequence[str] = ()

    @property
    def line(self) -> str:
        """Such as `train MVTec AD (test split, 1725 images) -> test VisA (2162 images)`."""
        if not self.tests:
            return f"{self._training} -> no test{cut_by(self.shortcuts)}"
        split = "" if self.tested_on["split"] == "test" else f"{self.tested_on['split']} split, "
        tested = f"{self.tested_on['title']} ({split}{_extent(self.tested_on)})"
        return f"{self._training} -> test {tested}{cut_by(self.shortcuts)}"

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
            raise UserError(
                f"{len(self.leaked)} tested categories of {self.tested_on['title']} belong to the training data too "
                f"({', '.join(self.leaked)}), so the result would not be zero-shot; train on another data set or other "
                "categories, or set allow_leakage=true"
            )

    def describe(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "line": self.line,
            "trained_on": self.trained_on,
            "tested_on": self.tested_on,
            "leaked_categories": self.leaked,
            "cut_short_by": list(self.shortcuts),
            "training_cut_short_by": list(self.trained_under),
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
    """How a line ends of what was cut short by such settings."""
    return f", cut short by {', '.join(settings)}" if settings else ""


def _extent(use: DataUse) -> str:
    names = use["categories"]
    if use["is_whole"]:
        return f"{use['images']} images"
    return f"{use['images']} images of {', '.join(names) if len(names) <= 3 else f'{len(names)} categories'}"
