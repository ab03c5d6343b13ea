"""Checkpoints: which epochs are kept, how they are written, and which one a run goes on with."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig

from datamodules.errors import UserError, reason_of
from src.config import LAST
from src.files import damaged, replacing
from src.processes import is_first

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"


class SelectedCheckpoint(ModelCheckpoint):
    """Keeps the epoch that is best on the held-out categories of the training data; the test data selects nothing.

    Example:
        >>> best = SelectedCheckpoint("checkpoints", "best", monitor="val/pixel_AP", mode="max")
        >>> trainer = Trainer(callbacks=[best], logger=False)
    """


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and keeps the one before: a power cut or a full disk costs neither.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for epoch in (1, 2):
        ...         CheckpointFiles().save_checkpoint({"epoch": epoch}, Path(folder, "last.ckpt"))
        ...     print(sorted(path.name for path in Path(folder).iterdir()))
        ['last.ckpt', 'last.previous.ckpt']
    """

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
                _keep(target, previous_checkpoint(target))


def checkpoint_callbacks(config: DictConfig, folder: Path) -> Iterator[ModelCheckpoint]:
    """What keeps the checkpoints of the best epoch, if a metric selects one, and of the last epoch, in this order.

    The last epoch's checkpoint holds the state of the selection, so it is written after it.

    Example:
        >>> from omegaconf import OmegaConf
        >>> [one.filename for one in checkpoint_callbacks(OmegaConf.create({"select": "pixel_AP"}), Path("outputs"))]
        ['best', 'last']
    """
    target = folder / LAST_CHECKPOINT
    if config.select != LAST:
        yield SelectedCheckpoint(target.parent, "best", monitor=f"val/{config.select}", mode="max")
    # Not Lightning's save_last, which writes at the end of the training only, unless another file is kept too.
    # After each epoch, also one without a validation; that comes before the epoch's end.
    yield ModelCheckpoint(
        target.parent, target.stem, save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )


def selected_checkpoint(trainer: Trainer, folder: Path) -> tuple[Path, float | None]:
    """The checkpoint of the epoch that is to be tested: the best on held-out categories if so selected, or the last.

    Returns:
        The file, and the epoch's score on the held-out categories if it was selected by it.

    Raises:
        UserError: it is to be selected, but no epoch was validated.

    Example:
        >>> path, score = selected_checkpoint(Trainer(logger=False), Path("outputs"))  # none is selected
        >>> str(path), score
        ('outputs/checkpoints/last.ckpt', None)
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


def _keep(path: Path, other: Path) -> None:
    """Give a file another name, too. A disk without links leaves a moment in which it has the other name alone."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:
        path.replace(other)


def previous_checkpoint(path: Path) -> Path:
    """Where a checkpoint is kept until the next one is whole.

    Example:
        >>> previous_checkpoint(Path("checkpoints/last.ckpt")).name
        'last.previous.ckpt'
    """
    return path.with_suffix(f".previous{path.suffix}")


def whole_checkpoint(path: Path) -> Path:
    """Replace a checkpoint that is missing or damaged by the one before it.

    Returns:
        The path.

    Raises:
        UserError: neither of the two is whole.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "last.ckpt")
        ...     for epoch in (1, 2):
        ...         CheckpointFiles().save_checkpoint({"epoch": epoch}, path)
        ...     _ = path.write_bytes(path.read_bytes()[:-1])  # the last byte is lost
        ...     print(torch.load(whole_checkpoint(path), weights_only=True))
        {'epoch': 1}
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
