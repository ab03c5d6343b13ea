"""From the configuration to Lightning's Trainer."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig

from datamodules.errors import UserError, reason_of
from src.callbacks.maps import MapWriter
from src.callbacks.predictions import PredictionWriter
from src.files import damaged, replacing
from src.metrics.benchmark_metrics import METRIC_NAMES
from src.processes import is_first
from src.stopping import end_processes, listen_again

LAST = "last"
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
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


class SelectedCheckpoint(ModelCheckpoint):
    """Keeps the epoch that is best on the held-out categories of the training data; the test data selects nothing."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and keeps the one before: a power cut or a full disk costs neither."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint. The one of that name becomes `<name>.previous.ckpt`.

        Raises:
            OSError: with the name of the file.
        """
        content = io.BytesIO()  # torch says of a full disk only that writing failed
        torch.save(checkpoint, content)
        target = Path(path)
        with replacing(target) as temporary:
            temporary.write_bytes(content.getbuffer())
            if target.is_file():
                target.replace(previous_checkpoint(target))


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


def build_trainer(
    config: DictConfig, folder: Path, images: Iterable[tuple[str, str]], *, trains: bool, run_id: str
) -> Trainer:
    """Build the trainer with the configured loggers and callbacks, and those that write what every run leaves.

    Args:
        config: a validated configuration.
        folder: the run's folder.
        images: category and path of every image that is scored.
        trains: whether there will be training, and so an epoch to select.
        run_id: the same when the run is resumed; for loggers that ask for an `id` and are given none.

    Raises:
        UserError: processes that would not work on one run; a setting that can't be.
    """
    callbacks: list[Callback] = [Ending(), *(_checkpoints(config, folder) if trains else [])]
    callbacks += [instantiate(node) for node in (config.callbacks or {}).values()]
    callbacks.append(PredictionWriter(folder, is_part=config.test_data.get("shard") is not None))
    if config.save_maps:
        callbacks.append(MapWriter(folder, images))
    trainer: Trainer = instantiate(
        config.trainer,
        logger=[
            instantiate(node, **({"id": run_id} if node.get("id", run_id) is None else {}))
            for node in (config.logger or {}).values()
        ],
        callbacks=callbacks,
        plugins=[*instantiate(config.trainer.get("plugins") or []), CheckpointFiles()],
        precision=effective_precision(config.trainer),
        default_root_dir=str(folder),
        use_distributed_sampler=False,
        enable_checkpointing=trains,
    )
    if trainer.world_size > 1:
        _check_processes(trainer, str(config.trainer.get("strategy", "auto")))
    # TensorFloat-32 keeps 10 bits of a float32; a run that says 32 computes in 32.
    torch.backends.cudnn.allow_tf32 = False
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


def selected_checkpoint(trainer: Trainer, folder: Path) -> tuple[Path, float | None]:
    """The checkpoint of the epoch that is to be tested: the best on held-out categories if so selected, or the last.

    Returns:
        The file, and the epoch's score on the held-out categories if it was selected by it.

    Raises:
        UserError: it is to be selected, but no epoch was validated.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, SelectedCheckpoint):
            if callback.best_model_score is None:
                raise UserError(
                    f"select={str(callback.monitor).removeprefix('val/')} needs a validated epoch, but there was none; "
                    "check trainer.check_val_every_n_epoch and trainer.limit_val_batches, or test "
                    f"{folder / LAST_CHECKPOINT} by src.eval with ckpt_path"
                )
            path = whole_checkpoint(Path(callback.best_model_path))
            # Its own score: of a damaged one the best before it has taken the place.
            state = torch.load(path, map_location="cpu", weights_only=True)["callbacks"][callback.state_key]
            return path, float(state["best_model_score"])
    return folder / LAST_CHECKPOINT, None


def previous_checkpoint(path: Path) -> Path:
    """Where a checkpoint is kept until the next one is whole."""
    return path.with_suffix(f".previous{path.suffix}")


def whole_checkpoint(path: Path) -> Path:
    """Put the checkpoint before in place of one that is missing or damaged.

    Returns:
        The path.

    Raises:
        UserError: neither of the two is whole.
    """
    if not is_first():
        return path  # all load it after they have met, and the first has looked by then
    reason = _damage_of(path)
    if reason is None:
        return path
    previous = previous_checkpoint(path)
    if _damage_of(previous) is not None:
        hint = f"remove {path.parent.parent} to train again, or choose another paths.output_dir"
        raise UserError(f"{damaged(path, reason)}; {hint}")
    rank_zero_warn(f"{damaged(path, reason)}; the one before it, of an earlier epoch, takes its place")
    previous.replace(path)
    return path


def _damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"the checksum of {broken} is wrong"
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, zlib, pickle and torch raise many types
        return reason_of(error)
    return None


def _checkpoints(config: DictConfig, folder: Path) -> Iterator[ModelCheckpoint]:
    """The best epoch first: the last epoch's checkpoint holds the state of this selection and has to come after it."""
    target = folder / LAST_CHECKPOINT
    if config.select != LAST:
        yield SelectedCheckpoint(target.parent, "best", monitor=f"val/{config.select}", mode="max")
    # Not Lightning's save_last, which writes at the end of the training only, unless another file is kept too.
    # After each epoch, also one without a validation; that comes before the epoch's end.
    yield ModelCheckpoint(
        target.parent, target.stem, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
