"""The way from a command line to a run, and from an error to one line.

Nothing heavy is imported before the configuration is composed: help and a misspelt option answer at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from datamodules.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"
_FULL_ERROR = "HYDRA_FULL_ERROR"
_USELESS_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.14
    r"Found \d+ module\(s\) in eval mode",  # the frozen CLIP
    r"Total length of `list` across ranks is zero",  # no validation, as the paper trains
    r"The number of training batches .* is smaller than the logging interval",  # the epoch's mean is logged anyway
)


def run_command(name: str) -> None:
    """Compose `conf/<name>.yaml` with the command line and run it.

    A user's mistake ends in one line on stderr and exit code 1; with HYDRA_FULL_ERROR=1 it has its traceback. Anything
    else is a bug and keeps its traceback.
    """
    wants_traceback = os.environ.get(_FULL_ERROR) == "1"
    os.environ[_FULL_ERROR] = "1"  # otherwise Hydra prints errors in its own way and ends the process
    failure: list[Exception] = []

    def task(config: DictConfig) -> None:
        try:
            _run(name, config)
        except Exception as error:
            # Hydra announces an error that leaves the task by a line of its own; a sweep has to see it, though.
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            failure.append(error)

    task.__module__ = f"src.{name}"
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
    except Exception as error:
        failure.append(error)
    finally:
        os.environ[_FULL_ERROR] = str(int(wants_traceback))
    if failure:
        line = one_line(failure[0])
        if wants_traceback or line is None:
            raise failure[0]
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)


def one_line(error: BaseException) -> str | None:
    """What to tell the user, or None if the error is not the user's."""
    for cause in _chain(error):
        if isinstance(cause, UserError):
            return str(cause)
    for cause in _chain(error):
        is_lightnings = type(cause).__name__ == "MisconfigurationException"
        if is_lightnings or isinstance(cause, (HydraException, OmegaConfBaseException)):
            return " ".join(str(cause).split())
    return None


def _run(name: str, config: DictConfig) -> None:
    """Check the configuration, and import what is heavy only then."""
    from src.config import validate

    validated = validate(config)
    from src.run import COMMANDS

    _tame_warnings()
    COMMANDS[name](validated)


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
