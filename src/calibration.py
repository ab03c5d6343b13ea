"""Thresholds that keep a promise: split conformal prediction from images without defects.

Of n such images, the ceil((n + 1)(1 - alpha))-th smallest score is the threshold: a new image without defects, taken
from where these were taken, scores above it with a probability of at most alpha, whatever the scores' distribution
(Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Lei et al., 2018).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from typing_extensions import Self, TypedDict

from datamodules.errors import UserError
from src.files import damaged, read_json, write_json

FORMAT = 1


def images_needed(max_false_alarms: float) -> int:
    """How many images without defects a promise takes.

    Args:
        max_false_alarms: above 0 and below 1; counted as it is written, so that 0.1 is a tenth.

    Raises:
        UserError: it is out of range.

    Example:
        >>> images_needed(0.01), images_needed(0.05), images_needed(0.2)
        (99, 19, 4)
    """
    return math.ceil(1 / _share(max_false_alarms)) - 1


def conformal_threshold(values: Sequence[float], max_false_alarms: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n values.

    Args:
        values: scores of n images without defects, in any order.
        max_false_alarms: alpha.

    Raises:
        ValueError: there are too few.

    Example:
        >>> conformal_threshold([0.4, 0.1, 0.3, 0.2], max_false_alarms=0.25)
        0.4
    """
    rank = math.ceil((len(values) + 1) * (1 - _share(max_false_alarms)))
    if rank > len(values):
        raise ValueError(f"expected {images_needed(max_false_alarms)} values or more, but got {len(values)}")
    return sorted(values)[rank - 1]


@dataclass(frozen=True)
class CategoryCalibration:
    """The calibration of a category.

    Attributes:
        alpha: the promised rate of false alarms, at most.
        n: how many images without defects it was made of.
        scores: their single-image scores, sorted.
        maxima: the highest values of their anomaly maps, sorted.
        score_threshold: an image with a higher score is anomalous.
        map_threshold: a pixel with a higher value is anomalous: of an image without defects, none is, but at the rate.

    Example:
        >>> cup = CategoryCalibration.of([0.4, 0.1, 0.3, 0.2], maxima=[4.0, 1.0, 3.0, 2.0], alpha=0.2)
        >>> cup.score_threshold, cup.map_threshold, cup.p_value(0.35)
        (0.4, 4.0, 0.4)
    """

    alpha: float
    n: int
    scores: list[float]
    maxima: list[float]
    score_threshold: float
    map_threshold: float

    @classmethod
    def of(cls, scores: Sequence[float], maxima: Sequence[float], alpha: float) -> Self:
        """Calibrate by the scores and the map's maxima of the same images.

        Raises:
            ValueError: there are too few.
        """
        thresholds = conformal_threshold(scores, alpha), conformal_threshold(maxima, alpha)
        return cls(alpha, len(scores), sorted(scores), sorted(maxima), *thresholds)

    def p_value(self, score: float) -> float:
        """The share of images without defects, the new one among them, that score as high: at most alpha if and only
        if the score is above the threshold.
        """
        return (1 + self.n - bisect_left(self.scores, score)) / (self.n + 1)


class _Record(TypedDict):
    """`calibration.json`."""

    format: int
    belongs_to: dict[str, Any]
    categories: dict[str, _CategoryRecord]


class _CategoryRecord(TypedDict):
    alpha: float
    n: int
    scores: list[float]
    maxima: list[float]
    score_threshold: float
    map_threshold: float


@dataclass(frozen=True)
class Calibration:
    """Thresholds of some categories, and what they belong to: other settings give other scores.

    Attributes:
        belongs_to: what decides the scores, by name; see `src.run.build.calibrated_for`.
        categories: by name.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> good = [0.01 * number for number in range(99)]
        >>> calibration = Calibration.of({"cup": (good, good)}, max_false_alarms=0.01, belongs_to={"tile": None})
        >>> with TemporaryDirectory() as folder:
        ...     calibration.write(Path(folder, "calibration.json"))
        ...     print(Calibration.read(Path(folder, "calibration.json")).categories["cup"].score_threshold)
        0.98
    """

    belongs_to: dict[str, Any]
    categories: dict[str, CategoryCalibration]

    @classmethod
    def of(
        cls,
        values: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        max_false_alarms: float,
        belongs_to: Mapping[str, Any],
    ) -> Self:
        """Calibrate by images without defects.

        Args:
            values: for each category its images' single scores, and the highest values of their maps.
            max_false_alarms: the promise.
            belongs_to: what decides the scores.

        Raises:
            UserError: a category has too few images.
        """
        for category, (scores, _) in values.items():
            check_number(category, len(scores), max_false_alarms)
        categories = {
            category: CategoryCalibration.of(scores, maxima, max_false_alarms)
            for category, (scores, maxima) in values.items()
        }
        return cls(dict(belongs_to), categories)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        categories = {category: asdict(one) for category, one in self.categories.items()}
        write_json(path, {"format": FORMAT, "belongs_to": self.belongs_to, "categories": categories})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file again.

        Raises:
            UserError: there is none, or it is not what `write` has written.
        """
        try:
            content = read_json(path, _Record)
        except FileNotFoundError as error:
            raise UserError(
                f"threshold: expected a number or a calibration.json, but there is no file {path}"
            ) from error
        if content["format"] != FORMAT:
            raise damaged(path, f"expected format {FORMAT}, found {content['format']}")
        categories = {}
        for name, one in content["categories"].items():
            try:
                again = CategoryCalibration.of(one["scores"], one["maxima"], one["alpha"])
            except (ValueError, UserError) as error:
                raise damaged(path, f"{name}: {error}") from error
            if asdict(again) != dict(one) or len(one["maxima"]) != one["n"]:
                raise damaged(path, f"{name}: its thresholds are not those of its scores")
            categories[name] = again
        return cls(content["belongs_to"], categories)


class Decisions:
    """Decides on images by a number, or by a calibration.

    Args:
        number: the threshold of every image's single score; None with a calibration.
        calibration: thresholds by category.

    Example:
        >>> decisions = Decisions(number=0.5)
        >>> decisions.is_anomalous("cup", 0.6), decisions.is_anomalous("cup", 0.5), decisions.p_value("cup", 0.6)
        (True, False, None)
    """

    def __init__(
        self, number: float | None = None, calibration: Mapping[str, CategoryCalibration] | None = None
    ) -> None:
        self.number = number
        self.calibration = dict(calibration or {})

    @classmethod
    def from_calibration(
        cls,
        calibration: Calibration,
        belongs_to: Mapping[str, Any],
        categories: Sequence[str],
        name: str = "the calibration",
    ) -> Self:
        """Take a calibration for some categories.

        Raises:
            UserError: it belongs to other settings, or a category is not in it.
        """
        theirs = calibration.belongs_to
        differs = [
            _difference(key, theirs.get(key), belongs_to.get(key))
            for key in sorted({*theirs, *belongs_to})
            if theirs.get(key) != belongs_to.get(key)
        ]
        if differs:
            raise UserError(
                f"{name} belongs to other settings: {'; '.join(differs)}; calibrate anew, or use the same settings"
            )
        missing = [category for category in categories if category not in calibration.categories]
        if missing:
            raise UserError(
                f"{name} is of {', '.join(calibration.categories)}, but not of {', '.join(missing)}; calibrate on "
                "images of it, or give the same category"
            )
        return cls(calibration={category: calibration.categories[category] for category in categories})

    def score_threshold(self, category: str) -> float:
        """Above it, an image's single score means anomalous."""
        return self.calibration[category].score_threshold if self.number is None else self.number

    def is_anomalous(self, category: str, score: float) -> bool:
        """Whether a single score is above the threshold."""
        return score > self.score_threshold(category)

    def p_value(self, category: str, score: float) -> float | None:
        """See `CategoryCalibration.p_value`; a number gives none."""
        return self.calibration[category].p_value(score) if self.number is None else None

    def map_threshold(self, category: str) -> float | None:
        """Above it, a pixel is marked; a number gives none."""
        return self.calibration[category].map_threshold if self.number is None else None


def check_number(category: str, count: int, max_false_alarms: float) -> None:
    """Refuse a promise that takes more images.

    Raises:
        UserError: it does.

    Example:
        >>> check_number("cup", 20, max_false_alarms=0.01)
        Traceback (most recent call last):
          ...
        datamodules.errors.UserError: max_false_alarms=0.01 takes 99 images without defects, but there are 20 of cup; \
add images, or promise 0.048 or more
    """
    needed = images_needed(max_false_alarms)
    if count < needed:
        possible = f", or promise {math.ceil(1000 / (count + 1)) / 1000} or more" if count else ""
        raise UserError(
            f"max_false_alarms={max_false_alarms} takes {needed} images without defects, but there are {count} of "
            f"{category}; add images{possible}"
        )


def as_number(threshold: str | float) -> float | None:
    """A threshold that is a number; None if it is text that names a file.

    Raises:
        UserError: it is not finite.

    Example:
        >>> as_number("0.5"), as_number("calibration.json")
        (0.5, None)
    """
    try:
        number = float(threshold)
    except ValueError:
        return None
    if isinstance(threshold, bool) or not math.isfinite(number):
        raise UserError(f"threshold must be a finite number or the path of a calibration.json, but got {threshold}")
    return number


def _share(max_false_alarms: float) -> Fraction:
    """As it is meant: the float 0.1 is a little more than a tenth, and 1 / 3 a little less than a third."""
    share = Fraction(repr(float(max_false_alarms))).limit_denominator(10**9)
    if not 0 < share < 1:
        raise UserError(f"max_false_alarms must be above 0 and below 1, such as 0.01, but got {max_false_alarms}")
    return share


def _difference(key: str, theirs: Any, ours: Any) -> str:
    """What differs, from one to the other; of nodes only the keys that do."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
        return ", ".join(_difference(f"{key}.{name}", theirs.get(name), ours.get(name)) for name in keys)
    texts = ["null" if value is None else str(value) for value in (theirs, ours)]
    return key if max(map(len, texts)) > 30 else f"{key} {texts[0]}, here {texts[1]}"
