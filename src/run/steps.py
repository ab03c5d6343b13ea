"""What a run does beside Lightning's own fit, test and predict."""

from __future__ import annotations

from lightning import Trainer
from omegaconf import DictConfig

from datamodules.base import AnomalyDataModule
from src.anomaly_module import AnomalyModule
from src.clip.backbone import BackboneSource
from src.features.cache import off
from src.features.setup import open_feature_cache
from src.processes import is_first, say
from src.run.checkpoints import selected_checkpoint
from src.run.folder import RunFolder
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
