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
from src.anomaly_module import AnomalyModule
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

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[WandbReview(images_per_category=4)], logger=False)
    """

    def __init__(self, images_per_category: int = 8, upload_images: bool | None = None) -> None:
        self.reads_cases = True
        self.images_per_category = images_per_category
        self.upload_images = upload_images
        self._is_told = False

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

    def _review(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        assert isinstance(module, AnomalyModule)
        runs = [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        data: AnomalyDataModule = trainer.datamodule  # type: ignore[attr-defined]
        shows_images = data.is_published if self.upload_images is None else self.upload_images
        folder = Path(trainer.default_root_dir)
        uploads: list[str] = []
        for run in runs:
            with warned("review in W&B"), cases_of(trainer) as cases:
                uploads = log_review(run, folder, cases, self.images_per_category if shows_images else 0)
        if not runs:
            return {}
        return {"wandb": {"id": runs[0].id, "url": None if runs[0].offline else runs[0].url, "uploaded": uploads}}


def learning_rates(trainer: Trainer) -> dict[str, float]:
    """The learning rate of each optimizer, by name."""
    return {f"lr-{type(own).__name__}": own.param_groups[0]["lr"] for own in trainer.optimizers}


def log_review(run: Any, folder: Path, cases: Cases, images_per_category: int) -> list[str]:
    """Log what a run has left to W&B.

    Args:
        run: of W&B.
        folder: with the run's files.
        cases: what was recorded while the images passed.
        images_per_category: ranked images to log, at most; 0 for none, also not within the page.

    Returns:
        The names of what was logged.
    """
    logged = review(run, describe(folder, cases), images_per_category)
    logged += log_files(run, folder, with_page=images_per_category > 0)
    with warned("lineage in W&B"):  # what was logged is logged, and said to be
        use_checkpoint(run, folder)
    return logged


def review(run: Any, description: Description, images_per_category: int) -> list[str]:
    """Log a description to a run of W&B.

    Args:
        run: of W&B.
        description: the results.
        images_per_category: ranked images to log, at most; 0 for none.

    Returns:
        The names of what was logged.
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
    run.log(media)
    return [*(name for name in media if not name.startswith(("cases/", "heat maps/"))), *shown]


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


def log_files(run: Any, folder: Path, with_page: bool) -> list[str]:
    """Log what a run has left as artifacts: trained weights by their content, and all results together.

    Args:
        run: of W&B.
        folder: the run's folder.
        with_page: whether the page goes along; it holds images.

    Returns:
        The names of the files.
    """
    import wandb

    logged = []
    for path in sorted(folder.glob("*.trained_on_*.safetensors")):
        weights = wandb.Artifact(weights_name(path), "model", metadata={"file": path.name, "sha256": sha256_of(path)})
        weights.add_file(str(path))
        run.log_artifact(weights)
        logged.append(path.name)
    results = wandb.Artifact(f"results-{run.id}", "results")
    names = [METRICS_FILE, PREDICTIONS_FILE, CURVES_FILE, *([REPORT_FILE] if with_page else [])]
    for name in names:
        if (folder / name).is_file():
            results.add_file(str(folder / name))
            logged.append(name)
    run.log_artifact(results)
    return logged


def use_checkpoint(run: Any, folder: Path) -> None:
    """Say in W&B which trained weights a run has used, if it is online: there is no lineage without W&B's server.

    Weights that W&B does not know yet become an artifact of this run.
    """
    provenance = read_provenance(folder)
    checkpoint = provenance["checkpoint"] if provenance else None
    if checkpoint is None or checkpoint["file"] is None or run.offline:
        return
    import wandb

    path = Path(checkpoint["file"]).expanduser()
    try:
        run.use_artifact(f"{weights_name(path)}:latest")
    except (wandb.errors.CommError, ValueError):
        weights = wandb.Artifact(weights_name(path), "model", metadata={"file": path.name, "sha256": sha256_of(path)})
        weights.add_file(str(path))
        run.use_artifact(weights)


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
