"""One row an image: `predictions.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from src.calibration import Decisions
from src.callbacks.map_writer import MAPS, OVERLAYS, map_names
from src.metrics.functional import needs_all_images
from src.models.method import Scores
from src.processes import gather_rows, is_first, say
from src.run.journal import Journal, Name
from src.run.predictions import EXTRAS, Prediction, cells_of, columns_of, write_predictions
from src.run.results import PREDICTIONS_FILE


class PredictionWriter(Callback):
    """Writes every image's scores, in file order: of a test when all are there, of a prediction as images pass.

    A prediction that is killed keeps the rows that it has written, and the same command goes on from there.

    Args:
        folder: the run's folder.
        terms: the names of the method's image-level terms.
        rule: how a test fuses the terms; None in a part of a test that has not all the images that the rule needs.
            The image score is left empty then, and in a prediction unless it needs one image alone.
        is_resumed: whether the folder holds rows of this very run.
        decisions: give `is_anomalous` and `p_value`; None leaves these columns out.
        saves_overlays: whether to name each image's overlay.
        saves_maps: whether to name each image's map.
        measures_maps: whether to write the highest value of each map.

    Attributes:
        unreadable: category, path and reason of each image that could not be read, on the first process.

    Raises:
        ValueError: a term has the name of another column.

    Example:
        >>> writer = PredictionWriter(Path("outputs/mine"), terms=["map_max"], rule="single")
        >>> trainer = Trainer(callbacks=[writer], logger=False)
    """

    def __init__(
        self,
        folder: Path,
        terms: Sequence[str],
        rule: str | None,
        *,
        is_resumed: bool = False,
        decisions: Decisions | None = None,
        saves_overlays: bool = False,
        saves_maps: bool = False,
        measures_maps: bool = False,
    ) -> None:
        self.path = folder / PREDICTIONS_FILE
        self.terms = terms
        self.rule = rule
        self.is_resumed = is_resumed
        self.decisions = decisions
        self.saves_overlays, self.saves_maps, self.measures_maps = saves_overlays, saves_maps, measures_maps
        wanted = [decisions is not None, decisions is not None, saves_overlays, saves_maps, measures_maps]
        self.extras = [name for name, is_wanted in zip(EXTRAS, wanted, strict=True) if is_wanted]
        self.journal = Journal(self.path, columns_of(terms, self.extras))
        self.unreadable: list[tuple[str, str, str]] = []
        self._rows: list[Prediction] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Name the files of every image; and go on where an earlier part of this prediction ended."""
        data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self._names = map_names(data.image_names) if self.saves_overlays or self.saves_maps else {}
        if stage == "predict":
            data.leave_out(trainer.strategy.broadcast(self._done(trainer) if is_first() else set()))

    def _done(self, trainer: Trainer) -> set[Name]:
        """The images of which all is there that this run leaves; of others nothing stays."""
        data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if not self.is_resumed:
            self.journal.remove()
            return set()
        done = self.journal.names() & set(data.image_names)
        keepers = [one for one in trainer.callbacks if hasattr(one, "keep")]  # type: ignore[attr-defined]
        for keeper in [*keepers, *keepers]:  # twice: what one of them has lost, the others drop
            done = keeper.keep(trainer, done)
        self.journal.keep(done)
        say(f"{len(done)} of {len(data.records)} images are done already")
        return done

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
            self._rows += self._rows_of(outputs, batch)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the scores of a batch. This callback comes after those that write the images' files."""
        for category, image_path, reason in batch.get("unreadable", ()) if "is_filler" not in batch else ():
            rank_zero_warn(reason)
            self.unreadable.append((category, image_path, reason))
        if outputs:
            rule = None if self.rule is None or needs_all_images(self.rule) else self.rule
            rows = cells_of(self._rows_of(outputs, batch), self.terms, rule)
            self.journal.append(rows, trainer.global_rank)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        rows, self._rows = gather_rows(self._rows), []  # processes test consecutive parts: this is file order
        if is_first():
            write_predictions(self.path, rows, self.terms, self.rule)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the table of a prediction in file order: all processes, and an earlier part of the run, have added rows.

        Raises:
            UserError: no image could be read.
        """
        if stage != "predict":
            return
        trainer.strategy.barrier("predictions")
        self.unreadable = gather_rows(self.unreadable)
        if is_first():
            data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
            order = {name: number for number, name in enumerate(data.image_names)}
            rows = self.journal.in_order(order.__getitem__)
            if self.unreadable and not rows:
                raise UserError(f"none of {len(self.unreadable)} images can be read, such as: {self.unreadable[0][2]}")
            self.journal.finish(rows)

    def _rows_of(self, outputs: dict[str, Any], batch: dict[str, Any]) -> list[Prediction]:
        """The rows of a batch, with the extra columns."""
        rows = rows_of(outputs["scores"], batch)
        if not self.extras:
            return rows
        maps = outputs.get("maps") or outputs["scores"].anomaly_map
        return [row._replace(extras=self._extras_of(row, one)) for row, one in zip(rows, maps, strict=True)]

    def _extras_of(self, row: Prediction, anomaly_map: Tensor) -> dict[str, str]:
        values: dict[str, str] = {}
        if self.decisions is not None:
            values["is_anomalous"] = str(int(self.decisions.is_anomalous(row.category, row.single_score)))
            p_value = self.decisions.p_value(row.category, row.single_score)
            values["p_value"] = "" if p_value is None else repr(p_value)
        name = self._names.get((row.category, row.image_path), Path())
        if self.saves_overlays:
            values["overlay"] = Path(OVERLAYS, name.with_suffix(".png")).as_posix()
        if self.saves_maps:
            values["map"] = Path(MAPS, name).as_posix()
        if self.measures_maps:
            values["map_highest"] = repr(float(anomaly_map.max()))
        return values


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
