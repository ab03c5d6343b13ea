"""What a run does beside Lightning's own fit, test and predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import Trainer
from omegaconf import DictConfig

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from src.anomaly_module import AnomalyModule
from src.calibration import Calibration
from src.callbacks.prediction_writer import PredictionWriter
from src.clip.backbone import BackboneSource
from src.features.cache import off
from src.features.setup import open_feature_cache
from src.processes import is_first, say
from src.run.checkpoints import selected_checkpoint
from src.run.folder import RunFolder
from src.run.predictions import iterate_predictions
from src.run.results import CALIBRATION_FILE, PREDICTIONS_FILE
from src.run.trained_weights import load_trained_weights, read_trained_weights, write_trained_weights


def serve_features(
    config: DictConfig,
    folder: RunFolder,
    trainer: Trainer,
    module: AnomalyModule,
    clip: BackboneSource,
    test_data: AnomalyDataModule,
    train_data: AnomalyDataModule | None = None,
) -> None:
    """Have frozen features read from disk where that is possible, and compute those that are missing.

    This is done before Lightning starts further processes, so that they find what the first one has computed.
    """
    cache = open_feature_cache(config, clip, module.method, trainer, trains=train_data is not None)
    if cache is None:
        return
    if test_data.skips_unreadable:
        cache = "photos are read once"
    if isinstance(cache, str):
        folder.write(feature_cache=off(cache))
        return
    uses = [(train_data, "train")] if train_data else []
    uses += [(train_data, "val")] if train_data and config.val_categories else []
    uses += [(test_data, "test")] if config.test else []
    folder.write(feature_cache={role: cache.serve(data, role) for data, role in uses})


def load_selected_epoch(
    config: DictConfig, folder: RunFolder, trainer: Trainer, module: AnomalyModule, train_data: AnomalyDataModule
) -> float | None:
    """Go back to the selected epoch, and write its trained parameters alone.

    Returns:
        The epoch's score on the held-out categories; None if no metric selects it.
    """
    if config.trainer.get("fast_dev_run"):
        return None  # Lightning writes no checkpoints then
    checkpoint, score = selected_checkpoint(trainer, folder.path)
    weights = read_trained_weights(checkpoint)
    load_trained_weights(module.method, weights, checkpoint)
    name = f"{module.method.name}.trained_on_{train_data.name}.safetensors"
    if is_first():
        write_trained_weights(folder.path / name, module.method, weights.origin)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "on_weights"):
                folder.write(**callback.on_weights(trainer, folder.path / name))
    epochs = weights.origin["epochs"]
    selection = {"file": name, "selected_by": config.select, "score": score, "epochs": epochs}
    folder.write(trained_weights=selection)
    if score is not None:
        for logger in trainer.loggers:
            logger.log_metrics({f"selected/{config.select}": score}, step=trainer.global_step)
            logger.save()
        held_out = ", ".join(config.val_categories)
        say(f"{config.select} of epoch {epochs} on held-out {held_out}: {100 * score:.1f}")
    return score


def note_unreadable(folder: RunFolder, trainer: Trainer) -> list[str]:
    """Record which images of a prediction can't be read, and return why."""
    reasons = [
        reason
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, PredictionWriter)
        for _, _, reason in callback.unreadable
    ]
    if reasons:
        folder.write(unreadable=reasons)
    return reasons


def tell_unreadable(reasons: Sequence[str]) -> None:
    """Fail if images could not be read.

    Raises:
        UserError: some could not.
    """
    if reasons:
        raise UserError(
            f"{len(reasons)} images can't be read and have no scores, such as: {reasons[0]}; provenance.json has all"
        )


def write_calibration(config: DictConfig, folder: RunFolder, belongs_to: dict[str, Any]) -> None:
    """Write the thresholds that the scores and maps of a prediction's images give.

    Raises:
        UserError: too few images could be read.
    """
    if not is_first():
        return
    scores: dict[str, list[float]] = {}
    maxima: dict[str, list[float]] = {}
    for row in iterate_predictions(folder.path / PREDICTIONS_FILE):
        scores.setdefault(row.category, []).append(row.single_score)
        maxima.setdefault(row.category, []).append(float((row.extras or {})["map_highest"]))
    values = {category: (scores[category], maxima[category]) for category in scores}
    calibration = Calibration.of(values, config.max_false_alarms, belongs_to)
    calibration.write(folder.path / CALIBRATION_FILE)
    for category, one in calibration.categories.items():
        say(f"{category}: anomalous above {one.score_threshold:.4g}, a pixel above {one.map_threshold:.4g}")
