"""From the configuration to Lightning's Trainer."""

from __future__ import annotations

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from datamodules.errors import UserError
from src.anomaly_module import AnomalyModule
from src.callbacks.predictions import PredictionWriter
from src.callbacks.results import ResultsWriter
from src.metrics.benchmark_metrics import METRIC_NAMES
from src.run.checkpoints import LAST, CheckpointFiles, checkpoint_callbacks
from src.run.folder import RunFolder
from src.stopping import end_processes, listen_again

# "auto" becomes ddp. Its relatives that fork or spawn would return before the results are theirs.
_STRATEGIES = ("ddp", "auto")
_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
# Trainer settings under which less is trained or tested than the data sets hold, and what they are when that is not so.
# As text, since of 1 and 1.0 the one means a batch and the other everything.
_SHORTCUTS = {
    "fast_dev_run": ("False", "None"),
    "overfit_batches": ("0", "0.0", "None"),
    "limit_train_batches": ("1.0", "None"),
    "limit_val_batches": ("1.0", "None"),
    "limit_test_batches": ("1.0", "None"),
    "limit_predict_batches": ("1.0", "None"),
    "max_steps": ("-1",),
    "max_time": ("None",),
}
_ONLY_EVALUATION = ("limit_val_batches", "limit_test_batches", "limit_predict_batches")


class Ending(Callback):
    """Has a signal or an error end all processes of a run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back from Lightning, which has taken it when this is called."""
        listen_again()

    on_test_start = on_train_start
    on_predict_start = on_train_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the processes that Lightning has started: they would wait for this one."""
        processes = getattr(trainer.strategy.launcher, "procs", [])
        end_processes(processes)
        processes.clear()  # Lightning watches this list, and kills the first process too when another one has failed


def build_trainer(config: DictConfig, folder: RunFolder, module: AnomalyModule) -> Trainer:
    """Build the trainer with the configured loggers and callbacks, and those that write what every run leaves.

    Raises:
        UserError: processes that would not work on one run; a setting that can't be.
    """
    trains = module.train_classes is not None
    callbacks: list[Callback] = [Ending(), *(checkpoint_callbacks(config, folder.path) if trains else [])]
    callbacks += [instantiate(node) for node in (config.callbacks or {}).values() if node is not None]
    callbacks += [PredictionWriter(folder.path, module.method.terms, module.fusion_rule), ResultsWriter(folder.path)]
    trainer: Trainer = instantiate(
        config.trainer,
        logger=[_build_logger(node, folder.run_id) for node in (config.logger or {}).values()],
        callbacks=callbacks,
        plugins=[*instantiate(config.trainer.get("plugins") or []), CheckpointFiles()],
        precision=effective_precision(config.trainer),
        default_root_dir=str(folder.path),
        use_distributed_sampler=False,
        enable_checkpointing=trains,
    )
    if trainer.world_size > 1:
        _check_processes(trainer, str(config.trainer.get("strategy", "auto")))
    if module.is_part:
        _check_part(trains=trains, processes=trainer.world_size)
    return trainer


def _build_logger(node: DictConfig, run_id: str) -> Logger:
    """A logger; one that asks for an `id` and is given none gets the run's, so that a resumed run goes on in it."""
    logger: Logger = instantiate(node, **({"id": run_id} if node.get("id", run_id) is None else {}))
    return logger


def _check_part(*, trains: bool, processes: int) -> None:
    """A part of an evaluation is a job of its own, beside which others do the rest.

    Raises:
        UserError: it would train, as all the others, or share its part.
    """
    if trains:
        raise UserError("test_data.shard is for src.eval and src.predict; train first, then test with ckpt_path=FILE")
    if processes > 1:
        raise UserError("test_data.shard is for jobs of one process each; set trainer.devices=1, and take more shards")


def _check_processes(trainer: Trainer, strategy: str) -> None:
    """Refuse several processes where they would not compute what one does.

    Raises:
        UserError: they are of another strategy, or would each write to a folder of their own.
    """
    if strategy not in _STRATEGIES:
        names = " or ".join(_STRATEGIES)
        raise UserError(f"trainer.strategy must be {names} for several processes, but got {strategy}")
    environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    is_explicit = any(override.startswith("paths.output_dir=") for override in HydraConfig.get().overrides.task)
    if (trainer.num_nodes > 1 or environment.creates_processes_externally) and not is_explicit:
        raise UserError(
            "processes that are started one by one must be told the same folder: give paths.output_dir=FOLDER, on a "
            "disk that all of them see"
        )


def effective_precision(trainer: DictConfig) -> str:
    """The precision that will run: a CPU has no float16 autocast to speak of, so there 16-mixed becomes bf16-mixed.

    Raises:
        UserError: a precision in which the projections and maps would not be computed in float32.
    """
    precision = str(trainer.get("precision") or "32-true")
    if precision not in _PRECISIONS:
        raise UserError(f"trainer.precision must be 32, bf16-mixed or 16-mixed, but got {precision}")
    accelerator = trainer.get("accelerator", "auto")
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not has_gpu)
    return "bf16-mixed" if on_cpu and precision in ("16", "16-mixed") else precision


def shortcuts(trainer: DictConfig) -> list[str]:
    """The settings under which a run does less than its data sets hold, such as `limit_test_batches=2`."""
    return [
        f"{key}={trainer[key]}"
        for key, whole in _SHORTCUTS.items()
        if key in trainer and str(trainer[key]) not in whole
    ]


def training_shortcuts(trainer: DictConfig) -> list[str]:
    """Those of them under which it trains less."""
    return [one for one in shortcuts(trainer) if not one.startswith(_ONLY_EVALUATION)]


def check_training_settings(config: DictConfig) -> None:
    """Check what only training reads.

    Raises:
        UserError: no optimizer, no epochs, or an epoch to select that can't be.
    """
    epochs = config.trainer.get("max_epochs")
    if not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"trainer.max_epochs must be 1 or more, but got {epochs}")
    if config.optimizer is None:
        raise UserError("optimizer is null, but the model trains; such as optimizer._target_=torch.optim.Adam")
    if config.select != LAST and config.select not in METRIC_NAMES:
        raise UserError(f"select must be {LAST} or one of {', '.join(METRIC_NAMES)}, but got '{config.select}'")
    if config.select != LAST and not config.val_categories:
        raise UserError(f"select={config.select} needs val_categories=[...], categories of train_data to hold out")
    for name, callback in (config.callbacks or {}).items():
        monitor = str(callback.get("monitor") or "")
        if monitor == f"val/{LAST}" or (monitor.startswith("val/") and not config.val_categories):
            raise UserError(
                f"callbacks.{name} watches {monitor}, a metric on held-out categories: give val_categories=[...] and "
                "select=METRIC"
            )
