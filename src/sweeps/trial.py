"""A trial of a sweep: what it leaves in its folder, and how it runs when it takes several processes.

Trials may run in other processes or on other machines, so what is known of a trial is a file. Nothing heavy is imported
here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig
from typing_extensions import TypedDict

from datamodules.errors import UserError
from src.files import damaged, read_json, write_json
from src.overrides import typed
from src.run.results import read_finished

TRIAL_FILE = "trial.json"
_SWEEP = "CLIP_AD_SWEEP"  # in the environment of a trial in a process of its own: of which sweep it is
_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class Trial(NamedTuple):
    """One run of a sweep, as its folder tells.

    Attributes:
        number: counted from 0; the folder's name.
        overrides: the command line that makes it, without Hydra's own keys.
        status: `running` (or stopped), `finished` or `failed`.
        objective: what an optimising sweep maximises; None if nothing is selected.
        error: why it failed or was stopped, in one line.

    Example:
        >>> Trial(3, ["optimizer.lr=9"], "failed", error="the loss of step 1 is not finite").line
        'trial 3 (optimizer.lr=9): the loss of step 1 is not finite'
    """

    number: int
    overrides: list[str]
    status: str = "running"
    objective: float | None = None
    error: str | None = None

    @property
    def line(self) -> str:
        """Why it failed, for the user."""
        return f"trial {self.number} ({' '.join(self.overrides)}): {self.error}"


class TrialRecord(TypedDict):
    """`trial.json`: the fields of a trial."""

    number: int
    overrides: list[str]
    status: Literal["running", "finished", "failed"]
    objective: float | None
    error: str | None


def current_trial() -> Trial:
    """The trial that Hydra has started in this process: a new one, or an earlier one that is not run again.

    Raises:
        UserError: its folder holds a finished trial with other overrides.
    """
    hydra = HydraConfig.get()
    now = Trial(int(hydra.job.num), [str(override) for override in hydra.overrides.task])
    earlier = read_trial(Path(hydra.runtime.output_dir))
    if earlier is None or not (earlier.status == "finished" or _is_part_of_history(earlier)):
        return now
    if earlier.overrides != now.overrides:
        raise UserError(f"{hydra.runtime.output_dir} holds another trial; choose another paths.output_dir")
    return earlier


def is_search(sweeper: DictConfig) -> bool:
    """Whether a sweeper chooses trials by the results of earlier ones, instead of trying all that it is given.

    Example:
        >>> from omegaconf import OmegaConf
        >>> is_search(OmegaConf.create({"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"}))
        True
    """
    return bool(sweeper._target_ != _BASIC_SWEEPER)


def _is_part_of_history(trial: Trial) -> bool:
    """Whether later trials of a search were chosen knowing that this one failed. They would not be again."""
    hydra = HydraConfig.get()
    if trial.status != "failed" or not is_search(hydra.sweeper):
        return False
    return any(later.number > trial.number for later in read_trials(Path(hydra.sweep.dir)))


def write_trial(trial: Trial) -> None:
    """Leave what is known of the current trial in its folder."""
    write_json(Path(HydraConfig.get().runtime.output_dir) / TRIAL_FILE, trial._asdict())


def read_trial(folder: Path) -> Trial | None:
    """What a trial has left in its folder, or None if it has not been started.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_json(Path(folder, TRIAL_FILE), Trial(0, ["seed=1"], "finished", 0.5)._asdict())
        ...     print(read_trial(Path(folder)).objective)
        0.5
    """
    try:
        content = dict(read_json(folder / TRIAL_FILE, TrialRecord))
    except FileNotFoundError:
        return None
    return Trial._make(content[key] for key in Trial._fields)


def read_trials(sweep: Path) -> Iterator[Trial]:
    """The trials of a sweep that were started, by number.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "0", TRIAL_FILE), Trial(0, ["seed=1"])._asdict())
        ...     print([trial.status for trial in read_trials(Path(folder))])
        ['running']
    """
    for folder in sorted((path for path in sweep.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name)):
        trial = read_trial(folder)
        if trial is not None:
            if trial.number != int(folder.name):
                raise damaged(folder / TRIAL_FILE, f"it is of trial {trial.number}")
            yield trial


def sweep_name() -> str | None:
    """The last two folders of the sweep that a run is a trial of: its date and time, unless the user names them.

    Example:
        >>> sweep_name() is None  # this is no trial
        True
    """
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is not None and hydra.mode == RunMode.MULTIRUN:
        return "/".join(Path(hydra.sweep.dir).parts[-2:])
    return os.environ.get(_SWEEP)  # of a trial in a process of its own


def starts_processes(trainer: DictConfig) -> bool:
    """Whether Lightning may start further processes for a run with these settings.

    Example:
        >>> from omegaconf import OmegaConf
        >>> starts_processes(OmegaConf.create({"devices": 1})), starts_processes(OmegaConf.create({"devices": 2}))
        (False, True)
    """
    devices = trainer.get("devices", "auto")
    is_one = len(devices) == 1 if isinstance(devices, ListConfig) else devices in (1, "1")
    return not is_one or trainer.get("num_nodes", 1) != 1


def run_in_new_process(command: str) -> float | None:
    """Run the current trial by a command line of its own.

    Lightning starts the other processes of a run by repeating the command line. In a sweep that would be the sweep's
    own: each process would draw its own hyperparameters.

    Returns:
        The objective that the run has written down.

    Raises:
        UserError: it failed, with its last line.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment[_SWEEP] = sweep_name() or ""
    # On a signal the new process is killed, and those that it has started end with it.
    done = subprocess.run(_own_command(command), env=environment, stderr=subprocess.PIPE, text=True, check=False)
    lines = done.stderr.splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said and done.returncode != 0:
        raise UserError(said[-1])
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode != 0:
        raise UserError((lines or [f"exit code {done.returncode}"])[-1])
    trained = read_finished(folder).get("trained_weights")
    return trained["score"] if trained else None


def _own_command(command: str) -> list[str]:
    """The trial as a single run, which takes some values as they are typed, while a sweep's are in Hydra's grammar."""
    hydra = HydraConfig.get()
    sources = [f"--config-dir={one.path}" for one in hydra.runtime.config_sources if one.provider == "command-line"]
    search = [override for override in hydra.overrides.hydra if override.startswith("hydra.searchpath=")]
    target = f"paths.output_dir={hydra.runtime.output_dir}"
    return [sys.executable, "-m", f"src.{command}", *sources, *search, *map(typed, hydra.overrides.task), target]
