"""`predictions.csv`: one row an image."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from datamodules.errors import reason_of
from src.files import damaged, write_csv
from src.metrics.functional import fuse

BEFORE_TERMS = ("image_path", "category", "label")
AFTER_TERMS = ("image_score", "single_score")
EXTRAS = ("is_anomalous", "p_value", "overlay", "map", "map_highest")
"""Columns that are there only where a run has what they name, in this order."""


class Prediction(NamedTuple):
    """An image's scores.

    Attributes:
        image_path: as the data set has it.
        category: as the data set has it.
        label: 0 or 1; None where the data set has none.
        terms: the image-level terms by name.
        single_score: the score of the image on its own.
        image_score: the fused score, of a row that was read; None where the file has none.
        extras: the text of those of `EXTRAS` that are there; None if there are none.

    Example:
        >>> Prediction("broken/000.png", "cup", 1, terms={"map_max": 0.5}, single_score=0.5).terms["map_max"]
        0.5
    """

    image_path: str
    category: str
    label: int | None
    terms: dict[str, float]
    single_score: float
    image_score: float | None = None
    extras: Mapping[str, str] | None = None


def columns_of(terms: Sequence[str], extras: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns of the table of a method with these terms.

    Raises:
        ValueError: a column would be there twice.

    Example:
        >>> columns_of(["map_max"])
        ('image_path', 'category', 'label', 'map_max', 'image_score', 'single_score')
    """
    columns = (*BEFORE_TERMS, *terms, *AFTER_TERMS, *extras)
    if len({*columns, *EXTRAS}) != len(columns) + len(EXTRAS) - len(extras):
        raise ValueError(f"Expected argument `terms` to make each column once, but got {', '.join(columns)}.")
    return columns


def write_predictions(path: Path, rows: Sequence[Prediction], terms: Sequence[str], rule: str | None) -> None:
    """Write the table.

    Args:
        path: the file.
        rows: in file order.
        terms: the names of the image-level terms, in the method's order.
        rule: how the image score is fused from the scores of a category's rows, one of
            `src.metrics.functional.FUSIONS`; None leaves it empty, where not all images are there that the rule needs.

    Raises:
        ValueError: there is no such rule, or it does not fit the terms.
        OSError: the disk is full.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "predictions.csv")
        ...     write_predictions(path, [Prediction("0.png", "cup", 1, {"map_max": 0.5}, 0.5)], ["map_max"], "single")
        ...     print(path.read_text().splitlines()[-1])
        0.png,cup,1,0.5,0.5,0.5
    """
    extras = list(rows[0].extras or ()) if rows else []
    write_csv(path, [columns_of(terms, extras), *cells_of(rows, terms, rule)])


def cells_of(rows: Sequence[Prediction], terms: Sequence[str], rule: str | None) -> list[list[str]]:
    """The table's rows as text.

    Example:
        >>> cells_of([Prediction("0.png", "cup", None, {"map_max": 0.5}, 0.5)], ["map_max"], rule=None)
        [['0.png', 'cup', '', '0.5', '', '0.5']]
    """
    image_scores = fused(rows, terms, rule) if rule else [None] * len(rows)
    table = []
    for row, image_score in zip(rows, image_scores, strict=True):
        scores = (*(row.terms[name] for name in terms), image_score, row.single_score)
        # repr gives back the very number, whether it is read as float32 or float64.
        cells = ("" if score is None else repr(score) for score in scores)
        label = "" if row.label is None else str(row.label)
        table.append([row.image_path, row.category, label, *cells, *(row.extras or {}).values()])
    return table


def read_predictions(path: Path) -> list[Prediction]:
    """Read a table again.

    Raises:
        UserError: it is not what the project writes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "predictions.csv")
        ...     write_predictions(path, [Prediction("0.png", "cup", 1, {"map_max": 0.5}, 0.5)], ["map_max"], "single")
        ...     print(read_predictions(path)[0].image_score)
        0.5
    """
    return list(iterate_predictions(path))


def iterate_predictions(path: Path) -> Iterator[Prediction]:
    """Read a table again, row by row.

    Raises:
        UserError: it is not what the project writes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> row = Prediction("cup/test/0.png", "cup", 1, {"map_max": 0.5}, single_score=0.5)
        >>> with TemporaryDirectory() as folder:
        ...     write_predictions(Path(folder, "predictions.csv"), [row], ["map_max"], rule=None)
        ...     print([row.single_score for row in iterate_predictions(Path(folder, "predictions.csv"))])
        [0.5]
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            end = header.index(AFTER_TERMS[-1]) + 1 if AFTER_TERMS[-1] in header else len(header)
            terms, extras = header[len(BEFORE_TERMS) : end - len(AFTER_TERMS)], header[end:]
            is_known = extras == [name for name in EXTRAS if name in extras]
            if not is_known or tuple(header) != columns_of(terms, extras):
                expected = ", ".join((*BEFORE_TERMS, "terms", *AFTER_TERMS))
                raise ValueError(f"expected the columns {expected}, found {', '.join(header) or 'none'}")
            yield from (_prediction(row, terms, extras, rows.line_num) for row in rows)
    except (OSError, ValueError, csv.Error) as error:
        raise damaged(path, reason_of(error)) from error


def _prediction(row: list[str], terms: list[str], extras: list[str], line: int) -> Prediction:
    columns = columns_of(terms, extras)
    if len(row) != len(columns) or row[2] not in ("", "0", "1"):
        raise ValueError(f"line {line} has not {len(columns)} columns, with a label of 0, 1 or none")
    *of_terms, image_score, single_score = row[len(BEFORE_TERMS) : len(row) - len(extras)]
    scores = [float(score) for score in (*of_terms, single_score, image_score or "0")]
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"line {line} has a score that is not finite")
    return Prediction(
        image_path=row[0],
        category=row[1],
        label=int(row[2]) if row[2] else None,
        terms=dict(zip(terms, scores, strict=False)),
        single_score=scores[-2],
        image_score=scores[-1] if image_score else None,
        extras=dict(zip(extras, row[len(row) - len(extras) :], strict=True)) or None,
    )


def fused(rows: Sequence[Prediction], terms: Sequence[str], rule: str) -> list[float]:
    """The image score of each row, fused over the rows of its category.

    Example:
        >>> first = Prediction("0.png", "cup", None, {"cls_score": 0.1, "map_max": 2.0}, single_score=2.1)
        >>> second = Prediction("1.png", "cup", None, {"cls_score": 0.3, "map_max": 4.0}, single_score=4.3)
        >>> fused([first, second], ["cls_score", "map_max"], "min_max_sum")
        [0.0, 2.0]
    """
    image_scores = [0.0] * len(rows)
    for category in dict.fromkeys(row.category for row in rows):
        indices = [i for i, row in enumerate(rows) if row.category == category]
        own = {name: _column([rows[i].terms[name] for i in indices]) for name in terms}
        single_score = _column([rows[i].single_score for i in indices])
        for i, value in zip(indices, fuse(own, single_score, rule).tolist(), strict=True):
            image_scores[i] = value
    return image_scores


def _column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
