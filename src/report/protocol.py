"""What was trained on what and tested on what: the line that every run begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError


class DataUse(TypedDict):
    """Which images of a data set a run uses.

    `categories` and `images` are those trained on or tested, `held_out` the categories that only validate.
    `is_whole` says that nothing of the published data set is left out.
    """

    name: str
    title: str
    split: str
    categories: list[str]
    held_out: list[str]
    images: int
    is_whole: bool


def describe_use(data: AnomalyDataModule) -> DataUse:
    """Which images a data module gives."""
    held_out = list(data.val_categories)
    is_everything = data.category_names == data.available_categories
    return DataUse(
        name=data.name,
        title=data.title,
        split=data.split,
        categories=[name for name in data.category_names if name not in held_out],
        held_out=held_out,
        images=sum(record.category not in held_out for record in data.records),
        is_whole=is_everything and not data.missing_categories and not held_out,
    )


@dataclass(frozen=True)
class Protocol:
    """A run's training and test data.

    Attributes:
        trainable: whether the model has anything to train.
        trained_on: what it is or was trained on; None if nothing is trained, or if a checkpoint does not say.
        tested_on: the benchmark.
    """

    trainable: bool
    trained_on: DataUse | None
    tested_on: DataUse

    @property
    def line(self) -> str:
        """Such as `train MVTec AD (test split, 1725 images) -> test VisA (2162 images)`."""
        split = "" if self.tested_on["split"] == "test" else f"{self.tested_on['split']} split, "
        return f"{self._training} -> test {self.tested_on['title']} ({split}{_extent(self.tested_on)})"

    @property
    def leaked(self) -> list[str]:
        """The tested categories whose data set was trained or validated on with the same categories."""
        if self.trained_on is None or self.trained_on["name"] != self.tested_on["name"]:
            return []
        seen = {*self.trained_on["categories"], *self.trained_on["held_out"]}
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
        }

    @property
    def _training(self) -> str:
        if not self.trainable:
            return "no training (frozen CLIP)"
        if self.trained_on is None:
            return "trained on unknown data"
        return f"train {self.trained_on['title']} ({self.trained_on['split']} split, {_extent(self.trained_on)})"


def _extent(use: DataUse) -> str:
    names = use["categories"]
    if use["is_whole"]:
        return f"{use['images']} images"
    return f"{use['images']} images of {', '.join(names) if len(names) <= 3 else f'{len(names)} categories'}"
