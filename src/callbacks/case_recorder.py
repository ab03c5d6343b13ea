"""Keeps what a page or a dashboard shows of each image, while the images pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from src.metrics.functional import average_precision, exact_curve
from src.metrics.functional.arguments import as_scores
from src.processes import is_first, warned
from src.report.cases import Case, Cases, CaseWriter, Picture
from src.report.pictures import denormalised, jpeg, outline, pack_map
from src.run.results import CASES_FILE

FEW = 500
"""Images of a test that are kept in twice the size."""

SMALL = 256
"""Pixels of a picture's side."""


class CaseRecorder(Callback):
    """Writes scores and small pictures of each image to a file, which is removed when the run ends.

    A run has one if a callback has an attribute `reads_cases` that is true; that callback reads them by `cases_of`. A
    part of an evaluation leaves its file for the page of the whole.

    Args:
        folder: the run's folder.
        is_part: whether this is a part of an evaluation.

    Attributes:
        error: why nothing is recorded any more, such as a full disk: a page is worth less than the metrics, so the run
            goes on.

    Example:
        >>> from lightning import Trainer
        >>> callbacks = [CaseRecorder(Path("outputs"))]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)
    """

    def __init__(self, folder: Path, is_part: bool = False) -> None:
        self.folder = folder
        self.is_part = is_part
        self.error: OSError | None = None
        self._writer: CaseWriter | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin this process's file."""
        data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.mean, self.std = data.mean, data.std
        self.size = 2 * SMALL if len(data.tested_records) <= FEW else SMALL
        self.error = None
        try:
            self._writer = CaseWriter(_file_of(self.folder, trainer.global_rank), data.root.absolute(), data.bits)
        except OSError as error:
            self._give_up(error)

    on_predict_start = on_test_start

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch."""
        if outputs is None or self._writer is None:  # a filler; or the disk is full
            return
        try:
            self._writer.add(self._cases(outputs, batch))
        except OSError as error:
            self._give_up(error)

    on_predict_batch_end = on_test_batch_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the files of all processes, or keep a part's: all callbacks have read them by now."""
        if stage not in ("test", "predict"):
            return
        if self._writer is not None:
            self._writer.close()
        if self.is_part:
            with warned(CASES_FILE):
                self._keep()
        elif is_first():  # the others would remove what the first one still reads
            for rank in range(trainer.world_size):
                _file_of(self.folder, rank).unlink(missing_ok=True)
        self._writer = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove this process's file."""
        self._discard()

    def _keep(self) -> None:
        if self.error is not None:
            raise self.error
        if self._writer is not None:
            self._writer.path.replace(self.folder / CASES_FILE)

    def _give_up(self, error: OSError) -> None:
        self.error = error
        self._discard()

    def _discard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer.path.unlink(missing_ok=True)
            self._writer = None

    def _cases(self, outputs: dict[str, Any], batch: dict[str, Any]) -> list[tuple[Case, Picture]]:
        scores, compared = outputs["scores"], outputs.get("compared_map")
        anomaly_maps = as_scores(scores.anomaly_map, "anomaly_map").numpy()  # (B, H, W)
        single_scores = scores.single_score.tolist()
        images = batch["image"].cpu().numpy() if "image" in batch else None  # (B, 3, S, S)
        cases = []
        for i, (category, image_path) in enumerate(zip(batch["category"], batch["image_path"], strict=True)):
            low, high, anomaly_map = pack_map(anomaly_maps[i])
            label = int(batch["label"][i]) if "label" in batch else None
            mask = batch["mask"][i].bool().cpu() if "mask" in batch else None
            pixel_ap = _pixel_ap(compared[i].cpu(), mask) if compared is not None and mask is not None else None
            share = float(mask.float().mean()) if mask is not None else None
            case = Case(category, image_path, label, single_scores[i], pixel_ap, share, low, high)
            image = None if images is None else jpeg(denormalised(images[i], self.mean, self.std), self.size)
            border = outline(mask.numpy().astype(np.uint8)) if share and mask is not None else ""
            cases.append((case, Picture(image, anomaly_map, border)))
        return cases


def cases_of(trainer: Trainer) -> Cases:
    """Open what the processes of a run have recorded, before the run ends.

    Raises:
        OSError: this process could not record its images, such as on a full disk.
        UserError: another process could not.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CaseRecorder) and callback.error is not None:
            raise callback.error
    files = [_file_of(Path(trainer.default_root_dir), rank) for rank in range(trainer.world_size)]
    for rank, file in enumerate(files):
        if not file.is_file():
            raise UserError(f"process {rank + 1} of {len(files)} could not record its images; is its disk full?")
    return Cases(files)


def _file_of(folder: Path, rank: int) -> Path:
    """Of a form that the next run in the folder takes for a leftover, if this one is killed."""
    return folder / f".{rank:016x}.tmp"


def _pixel_ap(anomaly_map: torch.Tensor, mask: torch.Tensor) -> float | None:
    """AP within an image, of a map (H, W) and a mask (H, W); None if the mask is empty."""
    if not mask.any():
        return None
    anomalous, normal = anomaly_map[mask], anomaly_map[~mask]
    rivals = normal[normal >= anomalous.min()]  # to sort the others takes time, and changes nothing
    return average_precision(exact_curve(anomalous, rivals)) if len(rivals) else 1.0
