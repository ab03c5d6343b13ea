"""A run in TensorBoard: curves, the ranked images, and its settings beside its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from datamodules.errors import UserError
from src.callbacks.case_recorder import cases_of
from src.callbacks.wandb_review import learning_rates
from src.metrics.benchmark_metrics import BenchmarkResult
from src.processes import warned
from src.report.description import Description, describe
from src.report.media import case_pictures, charts, scalars


class TensorBoardReview(Callback):
    """Writes a run's results to TensorBoard's files, from the description that the page is made of.

    Args:
        images_per_category: the ranked images of a category, at most.

    Raises:
        UserError: the number of images is below 0.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[TensorBoardReview(images_per_category=4)], logger=False)
    """

    def __init__(self, images_per_category: int = 8) -> None:
        if images_per_category < 0:
            raise UserError(
                f"callbacks.tensorboard_review.images_per_category must be 0 or more, got {images_per_category}"
            )
        self.reads_cases = True
        self.images_per_category = images_per_category

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the learning rates."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_metrics(learning_rates(trainer), step=trainer.global_step)

    def on_results(self, trainer: Trainer, module: LightningModule, results: BenchmarkResult) -> None:
        """Write those of a test."""
        self._review(trainer)

    def on_predictions(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the images of a prediction."""
        self._review(trainer)

    def _review(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                with warned("review in TensorBoard"), cases_of(trainer) as cases:
                    description = describe(Path(trainer.default_root_dir), cases)
                    write_review(logger, description, self.images_per_category, trainer.global_step)


def write_review(logger: TensorBoardLogger, description: Description, images_per_category: int, step: int = 0) -> None:
    """Write a description to TensorBoard's files; `step` is the training's last."""
    writer: Any = logger.experiment
    if description.metrics is not None:
        figures = scalars(description.metrics)
        for name, value in figures.items():
            if name.count("/") > 1:  # the means were logged by the test
                writer.add_scalar(name, value, step)
        means = {name: value for name, value in figures.items() if name.count("/") == 1}
        logger.log_hyperparams(logger.hparams, means)  # once more, with what they have led to
    for name, rows in charts(description).items():
        writer.add_figure(f"curves/{name}", _figure(name, rows))
    for category, histogram in description.histograms.items():
        edges = np.array(histogram["edges"])
        for group in ("normal", "anomalous", "unlabelled"):
            counts = np.array(histogram[group])
            if counts.any():
                middles = np.repeat((edges[:-1] + edges[1:]) / 2, counts)
                writer.add_histogram(f"scores/{category}/{group}", middles, bins=edges)
    for category in description.cards:
        for place, picture in enumerate(case_pictures(description, category, images_per_category), 1):
            pair = np.concatenate([picture.image, picture.heat_map], axis=1)
            writer.add_image(f"cases/{category}/{place}", pair, dataformats="HWC")
            writer.add_text(f"cases/{category}/{place}", picture.caption)
    writer.flush()


def _figure(name: str, rows: list[tuple[float, float, str]]) -> Any:
    """A chart with a line a category."""
    from matplotlib.figure import Figure  # half a second, and not pyplot, which would look for a window

    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    for category in dict.fromkeys(row[2] for row in rows):
        points = [(x, y) for x, y, own in rows if own == category]
        axes.plot(*zip(*points, strict=True), label=category)
    axes.set_title(name)
    axes.legend(fontsize="x-small")
    return figure
