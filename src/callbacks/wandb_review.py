"""A run in W&B: figures, curves, histograms, the ranked images, and its files as artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError, reason_of
from src.callbacks.case_recorder import cases_of
from src.callbacks.report import REPORT_FILE
from src.files import sha256_of
from src.metrics.benchmark_metrics import BenchmarkResult
from src.processes import is_first, say, warned
from src.report.cases import Cases
from src.report.description import Description, describe
from src.report.media import case_pictures, charts, scalars
from src.report.table import rows_of
from src.run.results import CURVES_FILE, METRICS_FILE, PREDICTIONS_FILE, read_provenance

MASK_LABELS = {0: "normal", 1: "anomalous"}


class WandbReview(Callback):
    """Logs a run's results to W&B, from the description that the page is made of.

    Images leave the machine only if they are of a published data set, or if that is asked for: those of a folder of
    one's own may be a customer's.

    Args:
        images_per_category: the ranked images of a category to upload, at most.
        upload_images: true or false; None for images of published data sets only.

    Raises:
        UserError: the number of images is below 0.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[WandbReview(images_per_category=4)], logger=False)
    """

    def __init__(self, images_per_category: int = 8, upload_images: bool | None = None) -> None:
        if images_per_category < 0:
            raise UserError(f"callbacks.wandb_review.images_per_category must be 0 or more, got {images_per_category}")
        self.reads_cases = True
        self.images_per_category = images_per_category
        self.upload_images = upload_images
        self._is_told = False
        self._logged: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say where the run can be watched."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and is_first() and not logger.experiment.offline and not self._is_told:
                say(f"W&B: {logger.experiment.url}")
                self._is_told = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the learning rates."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_metrics(learning_rates(trainer), step=trainer.global_step)

    def on_results(self, trainer: Trainer, module: LightningModule, results: BenchmarkResult) -> dict[str, Any]:
        """Log a test. Returns what has left the machine, for provenance.json."""
        return self._review(trainer, module)

    def on_predictions(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """Log a prediction: scores, and if it is asked for its images."""
        return self._review(trainer, module)

    def on_weights(self, trainer: Trainer, path: Path) -> dict[str, Any]:
        """Log the trained weights."""
        for run in self._runs(trainer):
            with warned("weights in W&B"):
                log_weights(run, path, self._logged)
        return self._entry(trainer)

    def _review(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
        shows_images = data.is_published if self.upload_images is None else self.upload_images
        images = self.images_per_category if shows_images else 0
        for run in self._runs(trainer):
            with warned("review in W&B"), cases_of(trainer) as cases:
                log_review(run, Path(trainer.default_root_dir), cases, images, self._logged)
        return self._entry(trainer)

    def _runs(self, trainer: Trainer) -> list[Any]:
        return [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]

    def _entry(self, trainer: Trainer) -> dict[str, Any]:
        """For provenance.json: which run of W&B it is, and what was handed to it."""
        runs = self._runs(trainer)
        url = runs[0].url if runs and not runs[0].offline else None
        return {"wandb": {"id": runs[0].id, "url": url, "uploaded": self._logged}} if runs else {}


def learning_rates(trainer: Trainer) -> dict[str, float]:
    """The learning rate of each optimizer, by name."""
    return {f"lr-{type(own).__name__}": own.param_groups[0]["lr"] for own in trainer.optimizers}


def log_review(run: Any, folder: Path, cases: Cases, images_per_category: int, logged: list[str]) -> None:
    """Log what a run has left to W&B.

    Args:
        run: of W&B.
        folder: with the run's files.
        cases: what was recorded while the images passed.
        images_per_category: ranked images to log, at most; 0 for none, also not within the page.
        logged: gets the name of each thing before it is handed over, so that it is right whatever fails.
    """
    review(run, describe(folder, cases), images_per_category, logged)
    log_files(run, folder, images_per_category > 0, logged)
    with warned("lineage in W&B"):
        use_checkpoint(run, folder)


def review(run: Any, description: Description, images_per_category: int, logged: list[str]) -> None:
    """Log a description to a run of W&B.

    Args:
        run: of W&B.
        description: the results.
        images_per_category: ranked images to log, at most; 0 for none.
        logged: gets the names of what is logged.
    """
    import wandb

    media: dict[str, Any] = {}
    if description.metrics is not None:
        run.summary.update(scalars(description.metrics))
        header, *rows = rows_of(description.metrics)
        media["test/categories"] = wandb.Table(columns=[str(name) for name in header], data=rows)
    for name, points in charts(description).items():
        table = wandb.Table(columns=["x", "y", "category"], data=[list(point) for point in points])
        fields = {"x": "x", "y": "y", "stroke": "category"}
        media[f"curves/{name}"] = wandb.plot_table("wandb/line/v0", table, fields, {"title": name})
    for category, histogram in description.histograms.items():
        for group in ("normal", "anomalous", "unlabelled"):
            counts = np.array(histogram[group])
            if counts.any():
                edges = np.array(histogram["edges"])
                media[f"scores/{category}/{group}"] = wandb.Histogram(np_histogram=(counts, edges))
    shown = []
    for category in description.cards if images_per_category else ():
        pictures = list(_images(description, category, images_per_category))
        if pictures:
            media[f"cases/{category}"] = [image for image, _ in pictures]
            media[f"heat maps/{category}"] = [heat_map for _, heat_map in pictures]
            shown += [f"{len(pictures)} images of {category}"]
    logged += [*(name for name in media if not name.startswith(("cases/", "heat maps/"))), *shown]
    run.log(media)


def _images(description: Description, category: str, count: int) -> Iterator[tuple[Any, Any]]:
    """An image with its masks, and its heat map, for each ranked case."""
    import wandb

    for picture in case_pictures(description, category, count):
        masks = {"ground_truth": picture.truth, "predicted": picture.predicted}
        given = {
            name: {"mask_data": mask, "class_labels": MASK_LABELS} for name, mask in masks.items() if mask is not None
        }
        image = wandb.Image(picture.image, caption=picture.caption, masks=given or None)
        yield image, wandb.Image(picture.heat_map, caption=picture.caption)


def log_weights(run: Any, path: Path, logged: list[str]) -> None:
    """Log trained weights as an artifact that is named by their content; `logged` gets the file's name."""
    import wandb

    weights = wandb.Artifact(weights_name(path), "model", metadata={"file": path.name, "sha256": sha256_of(path)})
    weights.add_file(str(path))
    logged.append(path.name)
    run.log_artifact(weights)


def log_files(run: Any, folder: Path, with_page: bool, logged: list[str]) -> None:
    """Log the results that a run has left, all together, as an artifact.

    Args:
        run: of W&B.
        folder: the run's folder.
        with_page: whether the page goes along; it holds images.
        logged: gets the names of the files.
    """
    import wandb

    results = wandb.Artifact(f"results-{run.id}", "results")
    names = [METRICS_FILE, PREDICTIONS_FILE, CURVES_FILE, *([REPORT_FILE] if with_page else [])]
    for name in names:
        if (folder / name).is_file():
            results.add_file(str(folder / name))
            logged.append(name)
    run.log_artifact(results)


def use_checkpoint(run: Any, folder: Path) -> None:
    """Say in W&B which trained weights a run has used.

    It needs W&B's server, and weights that a run has logged: others don't leave the machine.

    Raises:
        UserError: no run has logged them.
    """
    provenance = read_provenance(folder)
    checkpoint = provenance["checkpoint"] if provenance else None
    if checkpoint is None or checkpoint["file"] is None or run.offline:
        return
    path = Path(checkpoint["file"]).expanduser()
    try:
        run.use_artifact(f"{weights_name(path)}:latest")
    except ValueError as error:
        raise UserError(f"expected {path.name} among the weights that runs have logged ({reason_of(error)})") from error


def weights_name(path: Path) -> str:
    """Name weights by their content, so that a run finds those that another run has logged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "sdp_plus.safetensors")
        ...     _ = path.write_bytes(b"weights")
        ...     weights_name(path)
        'weights-9a129038d9a00aed'
    """
    return f"weights-{sha256_of(path)[:16]}"
