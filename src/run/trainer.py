"""From the configuration to Lightning's Trainer."""

from __future__ import annotations

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from datamodules.errors import UserError
from src.anomaly_module import AnomalyModule
from src.calibration import Decisions
from src.callbacks.case_recorder import CaseRecorder, Leftovers
from src.callbacks.prediction_writer import PredictionWriter
from src.callbacks.region_writer import RegionWriter
from src.callbacks.results_writer import ResultsWriter
from src.run.checkpoints import CheckpointFiles, checkpoint_callbacks
from src.run.folder import RunFolder
from src.run.trackers import build_loggers
from src.stopping import end_processes, listen_again

# "auto" becomes ddp. Its relatives that fork or spawn would return before the results are theirs.
_STRATEGIES = ("ddp", "auto")


class Ending(Callback):
    """Has a signal or an error end all processes of a run.

    Example:
        >>> trainer = Trainer(callbacks=[Ending()], logger=False)
    """

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


def build_trainer(
    config: DictConfig,
    folder: RunFolder,
    module: AnomalyModule,
    decisions: Decisions | None = None,
    measures_maps: bool = False,
) -> Trainer:
    """Build the trainer with the configured loggers and callbacks, and those that write what every run leaves.

    Args:
        config: a validated configuration.
        folder: of the run.
        module: is trained, tested or predicts.
        decisions: the thresholds of the run, if it has some.
        measures_maps: whether predictions.csv has the highest value of each map.

    Raises:
        UserError: processes that would not work on one run; a setting that can't be.
    """
    trains = module.train_classes is not None
    callbacks: list[Callback] = [Ending(), *(checkpoint_callbacks(config, folder.path) if trains else [])]
    callbacks += [instantiate(node) for node in (config.callbacks or {}).values() if node is not None]
    reads_cases = any(getattr(callback, "reads_cases", False) for callback in callbacks)
    # Of an image, its row in predictions.csv is written last: an image that has one is done.
    recorder = [CaseRecorder(folder.path, module.is_part)] if reads_cases else []
    callbacks += recorder
    if decisions is not None and decisions.calibration:  # a plain number does not tell of maps
        callbacks += [RegionWriter(folder.path, decisions, folder.is_resumed)]
    callbacks += [
        PredictionWriter(
            folder.path,
            module.method.terms,
            module.fusion_rule,
            is_resumed=folder.is_resumed,
            decisions=decisions,
            saves_overlays=config.save_overlays,
            saves_maps=config.save_maps,
            measures_maps=measures_maps,
        )
    ]
    callbacks += [ResultsWriter(folder.path, folder.write)]
    callbacks += [Leftovers(recorder[0])] if recorder else []
    trainer: Trainer = instantiate(
        config.trainer,
        logger=build_loggers(config, folder, module),
        callbacks=callbacks,
        plugins=[*instantiate(config.trainer.get("plugins") or []), CheckpointFiles()],
        precision=effective_precision(config.trainer),
        default_root_dir=str(folder.path),
        use_distributed_sampler=False,
        enable_checkpointing=trains,
    )
    if trainer.world_size > 1:
        _check_processes(trainer, str(config.trainer.get("strategy", "auto")))
    if module.is_part and trainer.world_size > 1:
        raise UserError("test_data.shard is for jobs of one process each; set trainer.devices=1, and take more shards")
    return trainer


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

    Example:
        >>> from omegaconf import OmegaConf
        >>> effective_precision(OmegaConf.create({"accelerator": "cpu", "precision": "16-mixed"}))
        'bf16-mixed'
    """
    precision = str(trainer.get("precision") or "32-true")
    accelerator = trainer.get("accelerator", "auto")
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not has_gpu)
    precision = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)
    return "bf16-mixed" if on_cpu and precision == "16-mixed" else precision
