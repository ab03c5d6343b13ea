"""Keeps what a page or a dashboard shows of each image, while the images pass."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
from src.report.cases import Case, Cases, CaseWriter, Picture, recover, write_ordered
from src.report.pictures import MAP_SIZE, TILED_MAP_SIZE, denormalised, jpeg, outline, pack_map
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
        self.files: list[Path] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin this process's file."""
        self._begin(trainer, [_file_of(self.folder, rank) for rank in range(trainer.world_size)])

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin this process's file, which stays for the same command to go on from if this run is killed."""
        first = trainer.strategy.broadcast(max(map(_number_of, _kept_files(self.folder)), default=0) + 1)
        self._begin(trainer, [self.folder / f"{_KEPT}{first + rank}.sqlite" for rank in range(trainer.world_size)])

    def keep(self, trainer: Trainer, names: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of the images that an earlier part of this prediction has recorded. A damaged file is removed."""
        recorded: set[tuple[str, str]] = set()
        for file in _kept_files(self.folder):
            try:
                recover(file)
                with Cases([file]) as cases:
                    recorded.update(cases.names())
            except (OSError, UserError):
                file.unlink()
        return recorded & set(names)

    def _begin(self, trainer: Trainer, files: Sequence[Path]) -> None:
        data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.files = list(files)
        self.mean, self.std = data.mean, data.std
        self.size = 2 * SMALL if len(data.tested_records) <= FEW else SMALL
        self.error = None
        own = files[trainer.global_rank]
        try:
            self._writer = CaseWriter(own, data.root.absolute(), data.bits, data.is_upright, lasts=own.suffix != ".tmp")
        except OSError as error:
            self._give_up(error)

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

    def close(self, trainer: Trainer) -> None:
        """Remove the files of all processes, or keep a part's: all callbacks have read them by now."""
        if self._writer is not None:
            self._writer.close()
        if self.is_part:
            with warned(CASES_FILE):
                self._keep(trainer)
        if is_first():  # the others would remove what the first one still reads
            for file in {*self.files, *_kept_files(self.folder), self.folder / _JOINED}:
                file.unlink(missing_ok=True)
        self._writer = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove this process's file, unless the run may go on from it."""
        if trainer.predicting and self._writer is not None:
            self._writer.close()
            self._writer = None
        self._discard()

    def _keep(self, trainer: Trainer) -> None:
        """Leave the cases of a part for the page of the whole."""
        if self.error is not None:
            raise self.error
        with cases_of(trainer) as cases:
            cases.files[0].replace(self.folder / CASES_FILE)

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
        given = outputs.get("maps") or scores.anomaly_map
        anomaly_maps = [as_scores(one, "anomaly_map").numpy() for one in given]  # (H, W) each
        is_tiled = [one is not None for one in batch.get("tiles", [None] * len(anomaly_maps))]
        single_scores = scores.single_score.tolist()
        images = batch["image"].cpu().numpy() if "image" in batch else None  # (B, 3, S, S)
        cases = []
        for i, (category, image_path) in enumerate(zip(batch["category"], batch["image_path"], strict=True)):
            low, high, anomaly_map = pack_map(anomaly_maps[i], TILED_MAP_SIZE if is_tiled[i] else MAP_SIZE)
            label = int(batch["label"][i]) if "label" in batch else None
            mask = batch["mask"][i].bool().cpu() if "mask" in batch else None
            pixel_ap = _pixel_ap(compared[i].cpu(), mask) if compared is not None and mask is not None else None
            share = float(mask.float().mean()) if mask is not None else None
            case = Case(category, image_path, label, single_scores[i], pixel_ap, share, low, high)
            image = None if images is None else jpeg(denormalised(images[i], self.mean, self.std), self.size)
            border = outline(mask.numpy().astype(np.uint8)) if share and mask is not None else ""
            cases.append((case, Picture(image, anomaly_map, border)))
        return cases


class Leftovers(Callback):
    """Removes what was recorded when all callbacks before this one have read it.

    Args:
        recorder: has recorded it.

    Example:
        >>> from lightning import Trainer
        >>> recorder = CaseRecorder(Path("outputs"))
        >>> trainer = Trainer(callbacks=[recorder, Leftovers(recorder)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, recorder: CaseRecorder) -> None:
        self.recorder = recorder

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove it."""
        if stage in ("test", "predict"):
            self.recorder.close(trainer)


def cases_of(trainer: Trainer) -> Cases:
    """Open what the processes of a run have recorded, before the run ends.

    Raises:
        OSError: this process could not record its images, such as on a full disk.
        UserError: another process could not.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CaseRecorder) and callback.error is not None:
            raise callback.error
    recorder = next(one for one in trainer.callbacks if isinstance(one, CaseRecorder))  # type: ignore[attr-defined]
    for rank, file in enumerate(recorder.files):
        if not file.is_file():
            raise UserError(
                f"process {rank + 1} of {len(recorder.files)} could not record its images; is its disk full?"
            )
    earlier = [file for file in _kept_files(recorder.folder) if file not in recorder.files]
    if not earlier:
        return Cases(recorder.files)
    joined = recorder.folder / _JOINED
    if not joined.is_file():
        data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
        with Cases([*earlier, *recorder.files]) as cases:
            write_ordered(joined, cases, data.image_names)
    return Cases([joined])


_KEPT = "cases.part"
_JOINED = f".{'c' * 16}.tmp"  # if the run is killed, the next one takes it for a leftover


def _kept_files(folder: Path) -> list[Path]:
    """What the processes of a prediction have recorded, and those of an earlier part of it; in the order of writing."""
    return sorted((file for file in folder.glob(f"{_KEPT}*.sqlite") if _number_of(file)), key=_number_of)


def _number_of(file: Path) -> int:
    number = file.name.removeprefix(_KEPT).removesuffix(".sqlite")
    return int(number) if number.isdecimal() else 0


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
