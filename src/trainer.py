"""From the configuration to Lightning's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from datamodules.errors import UserError
from src.callbacks.maps import MapWriter
from src.callbacks.predictions import PredictionWriter
from src.metrics.benchmark_metrics import METRIC_NAMES

LAST = "last"


def build_trainer(config: DictConfig, folder: Path, *, trains: bool) -> Trainer:
    """Build the trainer with the configured loggers and callbacks, and those that write what every run leaves.

    Args:
        config: a validated configuration.
        folder: the run's folder.
        trains: whether there will be training, and so an epoch to select.

    Raises:
        UserError: several processes, which would repeat images and so change the metrics; a selection that can't be.
    """
    callbacks: list[Callback] = [instantiate(node) for node in (config.callbacks or {}).values()]
    callbacks.append(PredictionWriter(folder))
    if config.save_maps:
        callbacks.append(MapWriter(folder))
    if trains and config.select != LAST:
        callbacks.append(_best_checkpoint(config, folder))
    trainer: Trainer = instantiate(
        config.trainer,
        logger=[instantiate(node) for node in (config.logger or {}).values()],
        callbacks=callbacks,
        precision=effective_precision(config.trainer),
        default_root_dir=str(folder),
        use_distributed_sampler=False,
    )
    if trainer.world_size > 1:
        raise UserError(
            f"{trainer.world_size} processes were asked for, but metrics are not gathered across processes yet; "
            "set trainer.devices=1 trainer.num_nodes=1 (several GPUs serve several runs at a time)"
        )
    return trainer


def effective_precision(trainer: DictConfig) -> Any:
    """The precision that will run: a CPU has no float16 autocast to speak of, so there 16-mixed becomes bf16-mixed."""
    precision = trainer.get("precision") or "32-true"
    accelerator = trainer.get("accelerator", "auto")
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not has_gpu)
    return "bf16-mixed" if on_cpu and str(precision) in ("16", "16-mixed") else precision


def _best_checkpoint(config: DictConfig, folder: Path) -> ModelCheckpoint:
    """Keep the epoch that is best on the held-out categories of the training data; the test data selects nothing."""
    if config.select not in METRIC_NAMES:
        raise UserError(f"select must be {LAST} or one of {', '.join(METRIC_NAMES)}, but got '{config.select}'")
    if not config.val_categories:
        raise UserError(f"select={config.select} needs val_categories=[...], categories of train_data to hold out")
    return ModelCheckpoint(folder / "checkpoints", "best", monitor=f"val/{config.select}", mode="max")


def selected_checkpoint(trainer: Trainer) -> Path | None:
    """The checkpoint of the selected epoch after training; None if that is the last one, which is in memory."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return Path(callback.best_model_path)
    return None
