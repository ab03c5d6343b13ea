"""What several processes have to agree on. In a single process all of it is trivial."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import distributed

from datamodules.errors import UserError, reason_of


def is_first() -> bool:
    """Whether this is the process that checks, writes and speaks. Known before any process group is there.

    Example:
        >>> is_first()  # here is one process only
        True
    """
    return int(getattr(rank_zero_only, "rank", 0)) == 0  # set by Lightning from the launcher's environment


def say(line: str) -> None:
    """Print a line, once however many processes there are.

    Example:
        >>> say("features of 10 images: 10 cached")
        features of 10 images: 10 cached
    """
    if is_first():
        print(line, flush=True)


def gather_rows(rows: list[Any]) -> list[Any]:
    """Collect the rows of all processes, in the order of the processes. Only the first gets them, the others nothing.

    Example:
        >>> gather_rows(["image 1", "image 2"])  # here is one process only
        ['image 1', 'image 2']
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    parts: list[Any] | None = [None] * distributed.get_world_size() if is_first() else None
    distributed.gather_object(rows, parts)
    return [row for part in parts or [] for row in part]


@contextmanager
def warned(what: str) -> Iterator[None]:
    """Let a run end well without something that is worth less than its metrics, such as a page; one line says why.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     with warned("report.html"):
        ...         raise OSError("No space left on device")
        >>> str(told[0].message)
        'no report.html: No space left on device'
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, UserError)) and not type(error).__module__.startswith("wandb."):
            traceback.print_exception(error)  # no trouble with a disk or a server, but a bug
        rank_zero_warn(f"no {what}: {reason_of(error)}")
