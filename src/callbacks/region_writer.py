"""What a threshold of the maps marks: a row a region as images pass, and COCO's JSON at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from datamodules.base import AnomalyDataModule
from src.calibration import Decisions
from src.processes import is_first, warned
from src.regions import regions_of, row_of
from src.report.description import size_of
from src.run.journal import Name
from src.run.predictions import iterate_predictions
from src.run.region_files import COCO_FILE, regions_journal, write_coco
from src.run.results import PREDICTIONS_FILE
from src.scoring import at_own_size


class RegionWriter(Callback):
    """Writes the regions of each predicted image that lie above the threshold of its category's maps.

    Maps are first brought to the image's own size. `regions.csv` grows batch by batch; `regions.coco.json` is written
    when all images have passed. This callback comes before the one that writes predictions.csv: an image that has its
    row there has its regions, too.

    Args:
        folder: the run's folder.
        decisions: have the thresholds. A category without a threshold of its maps has no regions.
        is_resumed: whether the folder holds regions of this very run.

    Example:
        >>> decisions = Decisions(0.5)
        >>> trainer = Trainer(callbacks=[RegionWriter(Path("outputs/mine"), decisions)], logger=False)
    """

    def __init__(self, folder: Path, decisions: Decisions, is_resumed: bool = False) -> None:
        self.folder = folder
        self.decisions = decisions
        self.is_resumed = is_resumed
        self.journal = regions_journal(folder)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the regions of another run."""
        if stage == "predict" and is_first() and not self.is_resumed:
            self.journal.remove()

    def keep(self, trainer: Trainer, names: Collection[Name]) -> set[Name]:
        """Keep only the regions of these images, which an earlier part of this prediction has done."""
        self.journal.keep(names)
        return set(names)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the regions of a batch."""
        if not outputs:  # of a filler there are none
            return
        rows: list[list[str]] = []
        sizes = batch.get("size") or [self._size_of(trainer, path) or (1, 1) for path in batch["image_path"]]
        for category, path, size, anomaly_map in zip(
            batch["category"], batch["image_path"], sizes, outputs["maps"], strict=True
        ):
            threshold = self.decisions.map_threshold(category)
            # Rounding may lift a value of the larger map a little above the highest one, which was calibrated.
            if threshold is None or anomaly_map.max().item() <= threshold:
                continue
            regions = regions_of(at_own_size(anomaly_map, tuple(size)).cpu().numpy(), threshold)
            rows += [row_of(path, category, number, region) for number, region in enumerate(regions, 1)]
        self.journal.append(rows, trainer.global_rank)

    def on_predictions(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the table in the order of predictions.csv, and write COCO's JSON."""
        data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
        order = {name: number for number, name in enumerate(data.image_names)}
        self.journal.finish(self.journal.in_order(order.__getitem__))
        with warned(COCO_FILE):
            write_coco(self.folder, self._images(trainer))

    def _images(self, trainer: Trainer) -> Iterator[tuple[str, str, int, int]]:
        """Path, category, width and height of each image that has a prediction and is still there."""
        for row in iterate_predictions(self.folder / PREDICTIONS_FILE):
            size = self._size_of(trainer, row.image_path)
            if size:
                height, width = size
                yield row.image_path, row.category, width, height

    @staticmethod
    def _size_of(trainer: Trainer, image_path: str) -> tuple[int, int] | None:
        """Height and width of an image; None if it is gone."""
        data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
        size = size_of(data.root / image_path, data.is_upright)
        return size and (size[1], size[0])
