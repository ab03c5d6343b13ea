"""A sweep: what is refused before it starts. Nothing heavy is imported here."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from typing_extensions import TypedDict

from datamodules.errors import UserError
from src.config import plain, validate
from src.files import read_json, write_json
from src.run.lock import locked
from src.run.results import PROVENANCE_FILE
from src.sweeps.trial import is_search, read_trials, starts_processes

SWEEP_FILE = "sweep.json"
_STARTED_TOGETHER = ("SLURM_STEP_NUM_TASKS", "WORLD_SIZE")  # set by srun and torchrun


class Sweep(TypedDict):
    """`sweep.json`: what decides the trials, and what a search maximises."""

    command: str
    overrides: list[str]
    sweeper: dict[str, Any]
    objective: str | None


class SweepRefusedError(BaseException):
    """Ends a sweep before it has started. Hydra would make a warning of an Exception that a callback raises.

    Attributes:
        reason: what the callback would have raised.

    Example:
        >>> SweepRefusedError(UserError("there is no train_data")).reason
        UserError('there is no train_data')
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class SweepCallback(Callback):
    """What Hydra calls before a sweep, see `conf/hydra/default.yaml`.

    The sweep's folder is locked from the start of the sweep to its end, or until the process dies.
    """

    def __init__(self) -> None:
        self._lock = ExitStack()

    def __reduce__(self) -> tuple[type[SweepCallback], tuple[()]]:
        """What a launcher sends to its workers, where nothing is locked."""
        return SweepCallback, ()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep that can't be right, and write down which one it is.

        Raises:
            SweepRefusedError: with what the user has to mend.
        """
        folder = Path(config.hydra.sweep.dir)
        try:
            objective = _objective(config)
            _check_launcher(config)
            _check_trials(config)
            sweep: Sweep = {
                "command": config.hydra.job.config_name,
                "overrides": list(config.hydra.overrides.task),
                "sweeper": _identity(config.hydra.sweeper),
                "objective": objective,
            }
            self._lock.enter_context(locked(folder))
            _check_folder(folder, sweep)
            write_json(folder / SWEEP_FILE, sweep)
        except Exception as error:
            self._lock.close()
            raise SweepRefusedError(error) from error
        HydraConfig.instance().set_config(config)  # Hydra itself sets it for each trial only

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Let go of the folder."""
        self._lock.close()


def _objective(config: DictConfig) -> str | None:
    """The metric that the sweep maximises; None if it tries all that it is given."""
    if not is_search(config.hydra.sweeper):
        return None
    if config.hydra.job.config_name != "train":
        raise UserError("this sweep searches for training settings, so it is for src.train")
    if config.get("train_data") is None:
        raise UserError("this sweep searches for training settings, but there is no train_data; add +exp=sdp_plus_visa")
    if not config.val_categories or config.select == "last":
        raise UserError(
            "this sweep maximises a metric on held-out categories of train_data, never on the benchmark: give "
            f"val_categories=[...] and select=METRIC, but got {config.val_categories} and {config.select}"
        )
    return f"{config.select} on held-out {', '.join(config.val_categories)}"


def _check_launcher(config: DictConfig) -> None:
    """A sweep is one process, which starts the others; started several times over, each would draw trials of its own.

    A cluster's job is one process here, too; Lightning would look for as many tasks as it wants processes.
    """
    if any(int(os.environ.get(count, 1)) > 1 for count in _STARTED_TOGETHER):
        raise UserError(
            "a sweep is started once, without srun or torchrun; it starts the processes of its trials itself"
        )
    if "submitit" in str(config.hydra.launcher._target_) and starts_processes(config.trainer):
        raise UserError(
            "a trial that is a job of its own runs in one process: set trainer.devices=1 trainer.num_nodes=1, or start "
            "runs over several processes one by one"
        )


def _check_trials(config: DictConfig) -> None:
    """Refuse a sweep of which no trial can run, as far as the configurations tell; one that can is enough to start.

    What a search draws is not known yet. It is refused for what its trials share.
    """
    task = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    params = config.hydra.sweeper.get("params") or {}
    if is_search(config.hydra.sweeper):
        fixed = [one for one in task if not one.is_sweep_override()]
        drawn = {*params, *(one.key_or_group for one in task)}.difference(one.key_or_group for one in fixed)
        mistake = _mistake_in(config, [str(one.input_line) for one in fixed])
        if mistake and not any(key in str(mistake) for key in drawn):
            raise mistake
        return
    swept = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in params.items()])
    (trials,) = BasicSweeper.split_arguments([*swept, *task], max_batch_size=None)
    lines = []
    for overrides in trials:
        mistake = _mistake_in(config, overrides)
        if mistake is None:
            return
        lines.append(str(mistake))
    if len(set(lines)) == 1:
        raise UserError(lines[0])
    raise UserError(f"none of the {len(lines)} trials can run; the first one: {lines[0]}")


def _mistake_in(config: DictConfig, overrides: list[str]) -> UserError | None:
    """What is wrong with a trial of a sweep, by its configuration alone.

    Args:
        config: the sweep's configuration, Hydra's node included.
        overrides: of the trial.
    """
    trial = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
    hydra_config = HydraConfig.instance()
    before = hydra_config.cfg
    with read_write(trial.hydra.runtime), open_dict(trial.hydra.runtime):
        trial.hydra.runtime.output_dir = str(config.hydra.sweep.dir)
    own = OmegaConf.masked_copy(trial, [str(key) for key in trial if key != "hydra"])
    hydra_config.set_config(trial)  # interpolations such as ${hydra:runtime.output_dir} read it
    try:
        validate(own, config.hydra.job.config_name)
    except UserError as mistake:
        return mistake
    finally:
        hydra_config.cfg = before
    return None


def read_sweep(folder: Path) -> Sweep | None:
    """Read which sweep a folder is of; None if that is not written down.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> sweep: Sweep = {"command": "train", "overrides": ["seed=1,2"], "sweeper": {}, "objective": None}
        >>> with TemporaryDirectory() as folder:
        ...     write_json(Path(folder, SWEEP_FILE), sweep)
        ...     print(read_sweep(Path(folder))["overrides"])
        ['seed=1,2']
    """
    try:
        return read_json(folder / SWEEP_FILE, Sweep)
    except FileNotFoundError:
        return None


def _check_folder(folder: Path, sweep: Sweep) -> None:
    """Refuse a folder that holds something else; the same sweep goes on where it was stopped."""
    if (folder / PROVENANCE_FILE).exists():
        raise UserError(f"{folder} holds a run; choose another paths.output_dir for the sweep")
    if not any(read_trials(folder)):
        return
    earlier = read_sweep(folder)
    if earlier is None or any(earlier[key] != sweep[key] for key in ("command", "overrides", "sweeper")):
        given = " ".join(earlier["overrides"] if earlier else ()) or "of unknown options"
        raise UserError(
            f"{folder} holds another sweep ({given}); give the same options to finish it, or another paths.output_dir"
        )


def _identity(sweeper: DictConfig) -> dict[str, Any]:
    """What decides the trials. A search may go on for longer than it was first asked to."""
    return {key: value for key, value in plain(sweeper).items() if key != "n_trials"}
