"""The progress bar: for predictions it counts images."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from datamodules.base import AnomalyDataModule
from datamodules.samplers import own_slice
from src.processes import is_first, say

_PAUSE = 30.0  # seconds between two lines where there is no terminal


class ImageProgress(RichProgressBar):
    """Lightning's bar; for predictions the images that are done, images a second, and the time that is left.

    Where there is no terminal it says the same in a line now and then, so that a log has it.

    Args:
        console: that predictions are shown on; None for the terminal.
        **options: of Lightning's bar.

    Example:
        >>> trainer = Trainer(callbacks=[ImageProgress()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, console: Console | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._own_console = console
        self._images: Progress | None = None
        self._task = TaskID(0)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show how many images there are: this process's share, without those of an earlier part of the run."""
        data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
        records = [one for one in data.tested_records if data.name_of(one) not in data.left_out]
        own = own_slice(len(records), data.batch_size, trainer.global_rank, trainer.world_size)
        self._total = max(own.stop - own.start, 1)  # a process without images has a batch that fills in
        self._done, self._started = 0, time.monotonic()
        self._told = self._started
        if not is_first() or self.is_disabled:
            return
        self._images = Progress(
            TextColumn("images"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._own_console,
        )
        self._task = self._images.add_task("images", total=self._total, rate="")
        if self._images.console.is_terminal:
            self._images.start()

    def on_predict_batch_start(self, *_: Any, **__: Any) -> None:
        """Show nothing of batches."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the images of a batch, those that can't be read among them."""
        self._done = min(self._done + len(batch["category"]) + len(batch.get("unreadable", ())), self._total)
        if self._images is None:
            return
        now = time.monotonic()
        rate = self._done / max(now - self._started, 1e-9)
        self._images.update(self._task, completed=self._done, rate=f"{rate:.1f} images/s")
        if not self._images.console.is_terminal and now - self._told >= _PAUSE:
            self._told = now
            say(line_of(self._done, self._total, rate))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same."""
        self._close()
        super().on_exception(trainer, pl_module, exception)

    def _close(self) -> None:
        if self._images is not None and self._images.console.is_terminal:  # elsewhere it would print an empty line
            self._images.stop()
            self._images = None


def line_of(done: int, total: int, rate: float) -> str:
    """How far a prediction is.

    Args:
        done: images.
        total: images.
        rate: images a second.

    Example:
        >>> line_of(120, 3000, 4.0)
        '120 of 3000 images, 4.0 images/s, 12 min left'
        >>> line_of(2990, 3000, 4.0)
        '2990 of 3000 images, 4.0 images/s, 2 s left'
    """
    left = (total - done) / rate if rate > 0 else 0.0
    text = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return f"{done} of {total} images, {rate:.1f} images/s, {text} left"
