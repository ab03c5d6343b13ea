"""The way from a command line to a run, and from an error to one line.

Nothing heavy is imported before the configuration is composed: help and a misspelt option answer at once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from datamodules.errors import UserError, reason_of
from src.run.lock import locked
from src.stopping import Signals, StoppedError, end_with_parent, only_stops, speaks
from src.sweeps.checks import SweepCallback, SweepRefusedError
from src.sweeps.trial import Trial, current_trial, read_trials, run_in_new_process, starts_processes, write_trial

CONF = Path(__file__).resolve().parents[1] / "conf"
_FULL_ERROR = "HYDRA_FULL_ERROR"
_USELESS_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.14
    r"Found \d+ module\(s\) in eval mode",  # the frozen CLIP
    r"Total length of `list` across ranks is zero",  # no validation, as the paper trains
    r"It is recommended to use `self.log\(.*sync_dist=True",  # what is logged is the same in all processes already
    r"Checkpoint directory .* exists and is not empty",  # a resumed run's
    r"The number of training batches .* is smaller than the logging interval",  # the epoch's mean is logged anyway
)


def run_command(name: str) -> None:
    """Compose `conf/<name>.yaml` with the command line and run it.

    A user's mistake ends in one line on stderr and exit code 1; with HYDRA_FULL_ERROR=1 it has its traceback. Anything
    else is a bug and keeps its traceback. Of a sweep, each failed trial has its line when all have been tried. SIGTERM
    and SIGINT end in one line and exit codes 143 and 130; the processes that this one has started end with it.
    """
    end_with_parent()
    wants_traceback = os.environ.get(_FULL_ERROR) == "1"
    os.environ[_FULL_ERROR] = "1"  # otherwise Hydra prints errors in its own way and ends the process
    _share_config_store()
    task = _Task(name)
    signals = Signals()
    SweepCallback.folder = None
    try:
        with signals.raised():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
    except SweepRefusedError as refused:
        task.errors = [refused.reason]
    except BaseException as error:
        if signals.received is not None:  # whatever the clean-up made of it
            _tell_stop(signals.received, SweepCallback.folder or task.folder)
            sys.exit(128 + signals.received)
        if not isinstance(error, Exception):
            raise
        # Before the task starts there is only the composition of what the user wrote, and the making of a folder.
        is_users = task.started or one_line(error)
        task.errors = task.errors or [error if is_users else UserError(reason_of(error))]
    finally:
        SweepCallback.lock.close()
        os.environ[_FULL_ERROR] = str(int(wants_traceback))
    trials: list[Trial] = []
    try:
        trials += read_trials(SweepCallback.folder) if SweepCallback.folder else ()
    except UserError as error:  # one of their files is damaged, which its trial may have said already
        task.errors = task.errors or [error]
    failed = [trial for trial in trials if trial.status == "failed"]
    for trial in failed:
        print(f"error: {trial.line}", file=sys.stderr)
    if failed and len(failed) == len(trials):
        sys.exit(1)  # what a search says when it has nothing to choose from says nothing new
    if task.errors:
        bug = next((one for one in task.errors if one_line(one) is None), None)
        if bug is not None or wants_traceback:
            raise bug or task.errors[0]
        for mistake in task.errors:
            print(f"error: {one_line(mistake)}", file=sys.stderr)
    if task.errors or failed:
        sys.exit(1)


def _share_config_store() -> None:
    """Have all of Hydra's repositories share the one store of structured configs, which they only read.

    For its help, Hydra copies a repository, and the store with it, once a config group: most of the time it takes.
    """
    setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010 - mypy refuses the assignment


class _Task:
    """What Hydra calls for a run, or for each trial of a sweep.

    Attributes:
        started: whether Hydra got as far as calling it.
        folder: of the run; None before it has started.
        errors: what runs ended with.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = False
        self.folder: Path | None = None
        self.errors: list[Exception] = []
        self.__module__ = f"src.{name}"  # Hydra names the job after it

    def __call__(self, config: DictConfig) -> float | None:
        """Run, and return the score of the selected epoch, if there is one, for a sweep to maximise.

        Errors don't leave here: Hydra would announce them by lines of its own, and end a sweep.
        """
        self.started = True
        self.folder = Path(HydraConfig.get().runtime.output_dir)
        end_with_parent()  # a launcher may have started this process, with the task alone
        try:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return _try(self.name, config)
            return _run(self.name, config)
        except Exception as error:
            self.errors.append(error)
            return None


def exit_code_of(command: Callable[[], int | None]) -> int:
    """Run a command that is not Hydra's. What the user can mend is one line on stderr, and a 1."""
    try:
        return command() or 0
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1


def _tell_stop(number: int, folder: Path | None) -> None:
    """Say in one line what a signal has stopped, and how to go on."""
    if not speaks():
        return
    line = f"stopped by {signal.Signals(number).name}"
    cut = [str(trial.number) for trial in read_trials(folder) if trial.status == "running"] if folder else []
    if cut:
        line += f" in trial {' and '.join(cut)}; later trials were not started"
    if folder:
        line += f"; the same command with paths.output_dir={folder} goes on from there"
    print(line, file=sys.stderr)


def one_line(error: BaseException) -> str | None:
    """What to tell the user, or None if the error is not the user's."""
    for cause in _chain(error):
        if isinstance(cause, UserError):
            return str(cause)
    for cause in _chain(error):
        if isinstance(cause, BrokenPipeError):
            return "the output was closed before the end"
        if isinstance(cause, OSError) and cause.errno:  # a full disk doesn't say which file it has no room for
            return f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
        if isinstance(cause, RuntimeError) and str(cause).startswith("DataLoader worker"):
            return (
                f"{reason_of(cause)}; if the system did it for want of memory, set num_workers or batch_size of "
                "test_data and train_data lower"
            )
        if type(cause).__module__.startswith("wandb."):
            return f"W&B: {reason_of(cause)}; log in by `wandb login`, or set logger.wandb.offline=true"
        if type(cause).__module__.startswith(("torch._dynamo", "torch._inductor")):
            return f"torch.compile: {reason_of(cause)}; set backbone.compile=false, or install what it needs"
        is_lightnings = type(cause).__name__ == "MisconfigurationException"
        if is_lightnings or isinstance(cause, (HydraException, OmegaConfBaseException)):
            return " ".join(str(cause).split())
    return None


def _try(name: str, config: DictConfig) -> float | None:
    """Run a trial of a sweep. How it ends is written down; if it fails, the others go on.

    Raises:
        UserError: its folder holds another trial, which is left as it is.
    """
    trial = current_trial()
    if trial.status == "finished":
        print(f"trial {trial.number} is finished already", flush=True)
        return trial.objective
    if trial.status == "failed":
        print(f"trial {trial.number} stays failed: the search has gone on from there", flush=True)
        return None
    write_trial(trial)
    gc.collect()  # Lightning's objects refer to each other, so the last trial's model would stay beside this one's
    try:
        score = run_in_new_process(name) if starts_processes(config.trainer) else _run(name, config)
    except StoppedError as stopped:
        write_trial(trial._replace(error=f"stopped by {stopped}"))
        raise
    except Exception as error:
        line = one_line(error)
        reason = line or f"{type(error).__name__}: {reason_of(error)}"
        write_trial(trial._replace(status="failed", error=reason))
        if line is None:
            traceback.print_exception(error)
        return None
    write_trial(trial._replace(status="finished", objective=score))
    return score


def _run(name: str, config: DictConfig) -> float | None:
    """Check the configuration, and import what is heavy only then."""
    from src.config import validate

    validated = validate(config)
    from src.commands import COMMANDS
    from src.processes import is_first

    _tame_warnings()
    keeps = locked(Path(HydraConfig.get().runtime.output_dir)) if is_first() else nullcontext()
    with keeps, only_stops():
        return COMMANDS[name](validated)


def _tame_warnings() -> None:
    """Show warnings to the user as one line each, and leave out those that say nothing about the run.

    To be called after Lightning has been imported, which sets a format of its own.
    """
    warnings.formatwarning = _format_warning
    for pattern in _USELESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)


def _format_warning(message: Warning | str, *_: object, **__: object) -> str:
    """A warning is for the user too: one line, without the place in the code it comes from."""
    return f"warning: {' '.join(str(message).split())}\n"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
