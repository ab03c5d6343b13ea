"""The page of a run: `report.html`."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from datamodules.errors import UserError
from src.callbacks.case_recorder import cases_of
from src.metrics.benchmark_metrics import BenchmarkResult
from src.processes import warned
from src.report.cases import Cases
from src.report.description import describe
from src.report.page import write_page
from src.sweeps.trial import sweep_name

REPORT_FILE = "report.html"
MOST_IMAGES = 2000


class Report(Callback):
    """Writes one self-contained page: what the run was, its metrics, curves, and the images with their maps.

    Args:
        max_images: how many images it shows at most; of more only the ranked ones.
        in_sweeps: whether the trials of a sweep have one, too.
        shard: of the tested data; a part leaves what the page of the whole is made of, also if a sweep runs all parts.

    Raises:
        UserError: `max_images` is below 0.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[Report(max_images=200)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, max_images: int = MOST_IMAGES, in_sweeps: bool = False, shard: str | None = None) -> None:
        if max_images < 0:
            raise UserError(f"callbacks.report.max_images must be 0 or more, but got {max_images}")
        self.max_images = max_images
        self.reads_cases = in_sweeps or shard is not None or sweep_name() is None

    def on_results(self, trainer: Trainer, module: LightningModule, results: BenchmarkResult) -> None:
        """Write the page of a test."""
        self._write(trainer)

    def on_predictions(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the page of a prediction."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if self.reads_cases:
            with warned(REPORT_FILE), cases_of(trainer) as cases:
                write_report(Path(trainer.default_root_dir), cases, self.max_images)


def write_report(folder: Path, cases: Cases, max_images: int = MOST_IMAGES) -> None:
    """Write the page of a run, from what it has left and from its cases.

    Raises:
        UserError: a file is missing or damaged.
        OSError: the disk is full.
    """
    write_page(folder / REPORT_FILE, describe(folder, cases, max_images))
