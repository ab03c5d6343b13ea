"""One row an image: `predictions.csv`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.errors import reason_of
from src.files import damaged, write_text
from src.metrics.functional.fusion import fuse_image_scores
from src.models.method import Scores
from src.processes import gather_rows, is_first
from src.run.results import PREDICTIONS_FILE

COLUMNS = ("image_path", "category", "label", "cls_score", "map_max", "image_score")


Fusion = Callable[[Tensor, Tensor], Tensor]


class Prediction(NamedTuple):
    """An image's scores; the label is None where the data set has none."""

    image_path: str
    category: str
    label: int | None
    cls_score: float
    map_max: float


class PredictionWriter(Callback):
    """Gathers every image's scores and writes them, in file order, when all are there.

    The last column is the fused image score: in a test over each category's images as the metrics fuse it, in a
    prediction by a sum that needs one image alone.

    Args:
        folder: the run's folder.
        is_part: whether this is a part of an evaluation, which has not all the images that the fusion needs: the last
            column is left empty.
    """

    def __init__(self, folder: Path, is_part: bool = False) -> None:
        self.path = folder / PREDICTIONS_FILE
        self.is_part = is_part
        self._rows: list[Prediction] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the scores of a batch."""
        if outputs:  # of a filler there are none
            self._rows += rows_of(outputs["scores"], batch)

    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        self._write(None if self.is_part else fuse_image_scores)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        self._write(single_image_score)

    def _write(self, fuse: Fusion | None) -> None:
        rows, self._rows = gather_rows(self._rows), []  # processes test consecutive parts: this is file order
        if is_first():
            write_predictions(self.path, rows, fuse)


def write_predictions(path: Path, rows: list[Prediction], fuse: Fusion | None) -> None:
    """Write the table; without a fusion the last column is empty."""
    image_scores = fuse_by_category(rows, fuse) if fuse else [None] * len(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row, image_score in zip(rows, image_scores, strict=True):
        label = "" if row.label is None else row.label
        # repr gives back the very number, whether it is read as float32 or float64.
        scores = (repr(row.cls_score), repr(row.map_max), "" if image_score is None else repr(image_score))
        writer.writerow((row.image_path, row.category, label, *scores))
    write_text(path, text.getvalue())


def read_predictions(path: Path) -> list[Prediction]:
    """Read a table again, without its last column.

    Raises:
        UserError: it is not what the project writes.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            if tuple(header) != COLUMNS:
                raise ValueError(f"expected the columns {', '.join(COLUMNS)}, found {', '.join(header) or 'none'}")
            return [_prediction(row, rows.line_num) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise damaged(path, reason_of(error)) from error


def _prediction(row: list[str], line: int) -> Prediction:
    if len(row) != len(COLUMNS) or row[2] not in ("", "0", "1"):
        raise ValueError(f"line {line} has not {len(COLUMNS)} columns, with a label of 0, 1 or none")
    cls_score, map_max = float(row[3]), float(row[4])
    if not math.isfinite(cls_score + map_max):
        raise ValueError(f"line {line} has a score that is not finite")
    return Prediction(row[0], row[1], int(row[2]) if row[2] else None, cls_score, map_max)


def rows_of(scores: Scores, batch: dict[str, Any]) -> list[Prediction]:
    """The rows of a batch."""
    labels = batch["label"].tolist() if "label" in batch else [None] * len(batch["category"])
    columns = (batch["image_path"], batch["category"], labels, scores.cls_score.tolist(), scores.map_max.tolist())
    return [Prediction(*row) for row in zip(*columns, strict=True)]


def single_image_score(cls_score: Tensor, map_max: Tensor) -> Tensor:
    """The two terms as they are, added: unlike the benchmark's fusion it needs no other image. (N,) -> (N,) float64."""
    return cls_score.double() + map_max.double()


def fuse_by_category(rows: list[Prediction], fuse: Fusion) -> list[float]:
    """Fuse the scores of each category's images, in the rows' order."""
    fused = [0.0] * len(rows)
    for category in dict.fromkeys(row.category for row in rows):
        indices = [i for i, row in enumerate(rows) if row.category == category]
        cls_score = torch.tensor([rows[i].cls_score for i in indices], dtype=torch.float32)
        map_max = torch.tensor([rows[i].map_max for i in indices], dtype=torch.float32)
        for i, value in zip(indices, fuse(cls_score, map_max).tolist(), strict=True):
            fused[i] = value
    return fused
