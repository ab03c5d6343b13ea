"""One run in a folder at a time. Nothing heavy is imported here."""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout
from typing_extensions import TypedDict

from datamodules.errors import UserError
from src.files import read_json, write_bytes

_LOCK_FILE, _HOLDER_FILE = ".lock", ".lock.json"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class Holder(TypedDict):
    """Who has locked a folder."""

    host: str
    process: int
    command: str
    since: str


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process until the block ends or the process dies.

    On network disks the lock holds for other machines too (NFS from version 4 on Linux). On a disk without locks there
    is a warning, and no protection.

    Raises:
        UserError: another process has it; the line says which.
        OSError: the folder can't be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with locked(Path(folder)):
        ...         print(read_json(Path(folder, ".lock.json"), Holder)["process"] == os.getpid())
        True
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{folder} is in use by {_holder(folder)}; wait for its end, or choose another folder (paths.output_dir)"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise OSError(error.errno, error.strerror, str(folder / _LOCK_FILE)) from error
        warnings.warn(f"{folder} is on a disk that knows no locks; start no second run in it", stacklevel=2)
        yield
        return
    try:
        _name_holder(folder)
        yield
    finally:
        (folder / _HOLDER_FILE).unlink(missing_ok=True)
        lock.release()


def _name_holder(folder: Path) -> None:
    """Write down who has the lock. The lock holds without it."""
    holder: Holder = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "command": shlex.join(sys.argv),
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_bytes(folder / _HOLDER_FILE, json.dumps(holder).encode(), sync=False)


def _holder(folder: Path) -> str:
    try:
        holder = read_json(folder / _HOLDER_FILE, Holder)
    except (OSError, UserError):  # it has just taken the lock, or is just letting go of it
        return "another process"
    return f"process {holder['process']} on {holder['host']} since {holder['since']} ({holder['command']})"
