"""A run's folder: new, unfinished (then it is resumed) or finished (then it is left alone)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.errors import UserError, reason_of
from src.files import remove_leftovers, write_json
from src.processes import is_first, say
from src.run.checkpoints import LAST_CHECKPOINT, previous_checkpoint, whole_checkpoint
from src.run.provenance import now
from src.run.results import PROVENANCE_FILE, hashes_of, read_provenance

# What may change between a run and its continuation: it says how to compute and where things are, not what they are.
_FREE_GROUPS = ("paths", "logger", "callbacks", "save_maps", "save_overlays", "references")
_NOT_FREE = "callbacks.early_stopping."
_FREE_KEYS = (
    *(f"{data}.{key}" for data in ("test_data", "train_data") for key in ("root", "num_workers")),
    *(f"feature_cache.{key}" for key in ("enabled", "max_gb")),
    *(f"trainer.{key}" for key in ("accelerator", "devices", "enable_progress_bar", "log_every_n_steps", "profiler")),
    *(f"trainer.{key}" for key in ("strategy", "num_nodes")),
)
_TOLD_TO_LOGGERS = ("command", "data", "references", "backbone", "checkpoint", "code", "packages", "device")
_HASHED = ("backbone", "checkpoint", "calibration", "references")
# Of a continuation these are noted beside those of the first part.
_EACH_PART = ("command", "code", "packages", "device")


class RunFolder:
    """The folder that a run writes to. Of several processes only the first writes, and compares configurations.

    Args:
        path: Hydra's output folder of this run.
        config: the resolved configuration.

    Raises:
        UserError: a finished run is there, an unfinished one of another configuration, or an unknown one's checkpoint.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as path:
        ...     with RunFolder(Path(path), {"seed": 7}).recorded("no training -> test my cups", loggers=[]):
        ...         print("test")
        ...     print([file.name for file in Path(path).iterdir()])  # doctest: +ELLIPSIS
        no training -> test my cups
        test
        results in ...
        ['provenance.json']
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        # All processes ask, since none must wait for one that refuses; none finishes before all have met.
        earlier = self._read_provenance()
        if earlier.get("finished"):
            raise UserError(
                f"{path} holds a finished run of {earlier['finished']}; choose another paths.output_dir or remove it"
            )
        if not is_first():
            earlier = {}  # the first one's beginning of this very run, perhaps
        changed = _changed_keys(earlier["config"], config) if earlier else []
        if changed:
            raise UserError(
                f"{path} holds an unfinished run of another configuration (it differs in {', '.join(changed)}); "
                "give the same options to resume it, or another paths.output_dir"
            )
        if is_first() and not earlier and (path / LAST_CHECKPOINT).is_file():
            raise UserError(
                f"{path} holds {LAST_CHECKPOINT} but no {PROVENANCE_FILE}, so it is unknown what run it belongs to; "
                "choose another paths.output_dir"
            )
        if is_first():
            remove_leftovers(path)
        self.is_resumed = bool(earlier)
        self.provenance: dict[str, Any] = earlier or {
            "started": now(),
            "resumed": [],
            "finished": None,
            "config": config,
        }

    def describe(self, **entries: Any) -> None:
        """Add what is known before the run.

        Raises:
            UserError: the unfinished run that is there had other data or weights.
        """
        if not self.is_resumed:
            self.provenance |= entries
            return
        for key, found in _hashes(entries).items():
            if found != _hashes(self.provenance).get(key):
                raise UserError(
                    f"{self.path} holds an unfinished run with other content of {key}; restore it, or choose another "
                    "paths.output_dir"
                )
        self.provenance["resumed"].append({"time": now(), **{key: entries.get(key) for key in _EACH_PART}})

    @property
    def checkpoint_to_resume(self) -> Path | None:
        """The unfinished run's last checkpoint, if it got that far.

        All processes find the same one, since no process writes before all have asked.
        """
        path = self.path / LAST_CHECKPOINT
        return whole_checkpoint(path) if path.is_file() or previous_checkpoint(path).is_file() else None

    @property
    def run_id(self) -> str:
        """Names this run, also when it is resumed, and no other."""
        return hashlib.sha256(f"{self.path.absolute()} {self.provenance['started']}".encode()).hexdigest()[:16]

    def write(self, **entries: Any) -> None:
        """Add entries to provenance.json and write it."""
        self.provenance |= entries
        if is_first():
            write_json(self.path / PROVENANCE_FILE, self.provenance)

    @contextmanager
    def recorded(self, line: str, loggers: Sequence[Logger]) -> Iterator[None]:
        """Say what the run is, on the terminal, here and to the loggers; after the block, mark the run as finished.

        From then on the folder is refused.

        Args:
            line: what is trained and tested.
            loggers: they are closed at the end: a run of W&B lasts as long as the process, and would take in a sweep's
                next trial.
        """
        say(line)
        self.write()
        try:
            known = {key: self.provenance.get(key) for key in _TOLD_TO_LOGGERS}
            for logger in loggers:
                logger.log_hyperparams({"protocol": line, "provenance": known, **self.config})
            yield
        except BaseException:
            close_loggers(loggers, exit_code=1)
            raise
        close_loggers(loggers, exit_code=0)
        self.write(finished=now(), files=hashes_of(self.path) if is_first() else {})
        say(f"results in {self.path}")

    def _read_provenance(self) -> dict[str, Any]:
        try:
            return dict(read_provenance(self.path) or {})
        except UserError as error:
            raise UserError(f"{error}; choose another paths.output_dir") from error


def close_loggers(loggers: Sequence[Logger], exit_code: int) -> None:
    """End W&B's run, which otherwise lasts as long as the process and would take in a sweep's next trial."""
    if not any(isinstance(logger, WandbLogger) for logger in loggers):
        return
    import wandb

    try:
        wandb.finish(exit_code=exit_code)
    except Exception as error:  # of any kind: what W&B could not send is no reason to lose a run
        rank_zero_warn(f"W&B did not take everything: {reason_of(error)}; wandb sync sends the rest")


def decides(key: str) -> bool:
    """Whether a key of the configuration decides the numbers; others say how to compute and where things are.

    Example:
        >>> decides("model.smoothing_sigma"), decides("paths.data_dir")
        (True, False)
    """
    is_free = key.partition(".")[0] in _FREE_GROUPS or any(f"{key}.".startswith(f"{free}.") for free in _FREE_KEYS)
    return not is_free or key.startswith(_NOT_FREE)


def _hashes(entries: dict[str, Any]) -> dict[str, Any]:
    """The hashes of data and weights among provenance's entries."""
    data = {f"data.{role}": used["sha256"] for role, used in entries.get("data", {}).items()}
    return data | {key: (entries.get(key) or {}).get("sha256") for key in _HASHED}


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _changed_keys(earlier: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The settings that decide the numbers and are not the same in two configurations, as dotted keys."""
    one, other, missing = _flat(earlier), _flat(config), object()
    changed = (key for key in one.keys() | other.keys() if one.get(key, missing) != other.get(key, missing))
    return sorted(filter(decides, changed))
