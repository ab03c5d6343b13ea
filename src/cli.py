"""The way from a command line to a run, and from an error to one line.

Nothing heavy is imported before the configuration is composed: help and a misspelt option answer at once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from datamodules.errors import UserError, reason_of
from src import environment
from src.config import validate
from src.overrides import CONF, data_set_of, explain, literal
from src.run.lock import locked
from src.stopping import Signals, StoppedError, end_with_parent, only_stops, speaks
from src.sweeps.checks import SweepRefusedError
from src.sweeps.trial import Trial, current_trial, read_trials, run_in_new_process, starts_processes, write_trial

_FULL_ERROR = "HYDRA_FULL_ERROR"
Command = Callable[[DictConfig], "float | None"]


def run_command(name: str, command: Command) -> None:
    """Compose `conf/<name>.yaml` with the command line and run it.

    A user's mistake ends in one line on stderr and exit code 1; with HYDRA_FULL_ERROR=1 it has its traceback. Anything
    else is a bug and keeps its traceback. After a sweep, each failed trial gets one line. SIGTERM and SIGINT end in one
    line and exit codes 143 and 130; the processes that this one has started end with it.

    Args:
        name: the configuration's name; the command is the module `src.<name>`.
        command: runs a validated configuration, and returns what a sweep maximises.
    """
    end_with_parent()
    environment.before_composing()
    wants_traceback = os.environ.get(_FULL_ERROR) == "1"
    os.environ[_FULL_ERROR] = "1"  # otherwise Hydra prints errors in its own way and ends the process
    HydraConfig.instance().cfg = None
    errors: list[Exception] = []
    folders: list[Path] = []  # of what was started
    signals = Signals()
    typed = sys.argv[:]

    def task(config: DictConfig) -> float | None:
        """Run, or try a trial. Of errors Hydra would tell in lines of its own, and end a sweep: they stay here."""
        sys.argv[:] = typed  # provenance records it, and Lightning starts further processes by it
        folders.append(Path(HydraConfig.get().runtime.output_dir))
        end_with_parent()  # a launcher may have started this process, with the task alone
        try:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return _try(name, command, config)
            return _run(name, command, config)
        except Exception as error:
            errors.append(error)
            return None

    task.__module__ = f"src.{name}"  # Hydra names the job after it
    try:
        with signals.raised():
            sys.argv[1:] = literal(typed[1:])
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
    except SweepRefusedError as refused:
        errors = [refused.reason]
    except BaseException as error:
        if signals.received is not None:  # whatever the clean-up made of it
            _tell_stop(signals.received, folders)
            sys.exit(128 + signals.received)
        if not isinstance(error, Exception):
            raise
        # Before the task starts there is only the composition of what the user wrote, and the making of a folder.
        errors = errors or [error if folders or one_line(error) else UserError(reason_of(error))]
    finally:
        sys.argv[:] = typed
        os.environ[_FULL_ERROR] = str(int(wants_traceback))
    has_failed_trials = _tell_trials(errors)
    if _tell_errors(errors, wants_traceback) or has_failed_trials:
        sys.exit(1)


def _tell_trials(errors: list[Exception]) -> bool:
    """Print why trials of a sweep failed. What Hydra says when all have failed says nothing new.

    Args:
        errors: of the sweep; changed to those that are left to be told.

    Returns:
        Whether a trial failed.
    """
    try:
        trials = _trials()
    except UserError as error:  # one of their files is damaged
        errors[:] = [error]
        return False
    failed = [trial for trial in trials if trial.status == "failed"]
    for trial in failed:
        print(f"error: {trial.line}", file=sys.stderr)
    if failed and len(failed) == len(trials):
        errors.clear()
    return bool(failed)


def _tell_errors(errors: list[Exception], wants_traceback: bool) -> bool:
    """Print a line for each error, or raise the first that needs its traceback. Returns whether there was one."""
    bug = next((one for one in errors if one_line(one) is None), None)
    if errors and (bug is not None or wants_traceback):
        raise bug or errors[0]
    for mistake in errors:
        print(f"error: {one_line(mistake)}", file=sys.stderr)
    return bool(errors)


def _trials() -> list[Trial]:
    """The trials of the sweep that this process has started, if it has."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return []
    return list(read_trials(Path(HydraConfig.get().sweep.dir)))


def exit_code_of(command: Callable[[], int | None]) -> int:
    """Run a command that does not use Hydra. A user's mistake gives one line on stderr and exit code 1.

    Example:
        >>> def read() -> None:
        ...     raise UserError("there is no such folder")
        >>> exit_code_of(read)  # writes `error: there is no such folder` to stderr
        1
    """
    try:
        return command() or 0
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1


def _tell_stop(number: int, folders: list[Path]) -> None:
    """Say in one line what a signal has stopped, and how to go on."""
    if not speaks():
        return
    line = f"stopped by {signal.Signals(number).name}"
    cut = [str(trial.number) for trial in _trials() if trial.status == "running"]
    if cut:
        line += f" in trial {' and '.join(cut)}; later trials were not started"
    if HydraConfig.initialized():  # of a sweep, whose trials have all left it
        folders = [Path(HydraConfig.get().sweep.dir)]
    if folders:
        line += f"; the same command with paths.output_dir={folders[0]} goes on from there"
    print(line, file=sys.stderr)


def one_line(error: BaseException) -> str | None:
    """The line that tells the user of an error; None if the error is not a user's mistake but a bug.

    Example:
        >>> one_line(UserError("expected one folder"))
        'expected one folder'
        >>> one_line(KeyError("a bug")) is None
        True
    """
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
        if type(cause).__name__ == "MisconfigurationException":  # Lightning's
            return " ".join(str(cause).split())
        refused = explain(cause)
        if refused:
            return refused
    return None


def _try(name: str, command: Command, config: DictConfig) -> float | None:
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
        score = run_in_new_process(name) if starts_processes(config.trainer) else _run(name, command, config)
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


def _run(name: str, command: Command, config: DictConfig) -> float | None:
    """Check the configuration, and import what is heavy only then."""
    data_set = data_set_of(HydraConfig.get().overrides.task) if config.get("source") is not None else None
    validated = validate(config, name, data_set)
    environment.before_running()
    from src.processes import is_first

    keeps = locked(Path(HydraConfig.get().runtime.output_dir)) if is_first() else nullcontext()
    with keeps, only_stops():
        return command(validated)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
