"""One row an image: `predictions.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from src.metrics.functional import needs_all_images
from src.models.method import Scores
from src.processes import gather_rows, is_first
from src.run.predictions import Prediction, columns_of, write_predictions
from src.run.results import PREDICTIONS_FILE


class PredictionWriter(Callback):
    """Gathers every image's scores and writes them, in file order, when all are there.

    Args:
        folder: the run's folder.
        terms: the names of the method's image-level terms.
        rule: how a test fuses the terms; None in a part of a test that has not all the images that the rule needs.
            The image score is left empty then, and in a prediction unless it needs one image alone.

    Raises:
        ValueError: a term has the name of another column.

    Example:
        >>> writer = PredictionWriter(Path("outputs/mine"), terms=["map_max"], rule="single")
        >>> trainer = Trainer(callbacks=[writer], logger=False)
    """

    def __init__(self, folder: Path, terms: Sequence[str], rule: str | None) -> None:
        self.path = folder / PREDICTIONS_FILE
        self.terms = terms
        self.rule = rule
        self._rows: list[Prediction] = []
        columns_of(terms)

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
        self._write(self.rule)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        self._write(None if self.rule is None or needs_all_images(self.rule) else self.rule)

    def _write(self, rule: str | None) -> None:
        rows, self._rows = gather_rows(self._rows), []  # processes test consecutive parts: this is file order
        if is_first():
            write_predictions(self.path, rows, self.terms, rule)


def rows_of(scores: Scores, batch: dict[str, Any]) -> list[Prediction]:
    """The rows of a batch.

    Example:
        >>> import torch
        >>> score = torch.tensor([0.5])
        >>> scores = Scores(torch.zeros(1, 2, 2), terms={"map_max": score}, single_score=score)
        >>> row = rows_of(scores, {"image_path": ["0.png"], "category": ["cup"]})[0]
        >>> row.image_path, row.label, row.terms
        ('0.png', None, {'map_max': 0.5})
    """
    size = len(batch["category"])
    labels = batch["label"].tolist() if "label" in batch else [None] * size
    terms = {name: values.tolist() for name, values in scores.terms.items()}
    single_score = scores.single_score.tolist()
    return [
        Prediction(
            batch["image_path"][i],
            batch["category"][i],
            labels[i],
            {name: values[i] for name, values in terms.items()},
            single_score[i],
        )
        for i in range(size)
    ]
