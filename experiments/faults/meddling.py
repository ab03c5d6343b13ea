"""What disturbs a command: each is called in the child, with the folder the command was told, before it starts."""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Meddling = Callable[[Path], None]
Action = Callable[[], None]

_WRITES = {"os.mkdir": 0, "os.rename": 1, "os.symlink": 1, "os.link": 1, "os.truncate": 0}
_REMOVES = {"os.remove": 0, "os.rmdir": 0}


class NoMountError(Exception):
    """This machine lets nobody mount a disk."""


def written_path(event: str, arguments: tuple[Any, ...], *, removed: bool = False) -> str | None:
    """The path that an audit event makes or changes, or removes, too; None if it does nothing of that kind."""
    if event == "open":
        path, _, flags = arguments
        if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return None
    elif event in _WRITES or (removed and event in _REMOVES):
        path = arguments[(_WRITES | _REMOVES)[event]]
    else:
        return None
    if isinstance(path, int) or path is None or (event == "os.mkdir" and Path(os.fsdecode(path)).is_dir()):
        return None
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - a link is not followed


def kill() -> None:
    """End this process at once, as a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def send(number: int) -> Action:
    """Send this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def sleep(seconds: float) -> Action:
    """Do nothing for a while."""
    return lambda: time.sleep(seconds)


def full() -> None:
    """Say what a full disk says, which names no file."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_write(count: int, action: Action, *, below: str = "", for_good: bool = False) -> Meddling:
    """Act at the n-th time that something is written below a folder.

    Args:
        count: n, from 1.
        action: what happens then.
        below: the folder, relative to the command's; `../cache` is the caches'.
        for_good: also at each later time, as on a disk that stays full.
    """

    def meddle(folder: Path) -> None:
        root = os.path.abspath(folder / below)  # noqa: PTH100 - as above
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            path = written_path(event, arguments)
            if path is not None and (path == root or path.startswith(f"{root}/")):
                seen += 1
                if seen == count or (for_good and seen > count):
                    _named(action, path)

        sys.addaudithook(hook)

    return meddle


def _named(action: Action, path: str) -> None:
    """Act, and name what can't be made, as the system does; only of what can't be written into does it say nothing."""
    try:
        action()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def when_written(name: str, action: Action) -> Meddling:
    """Act when a file of this name is put in its place, by whatever way."""

    def meddle(folder: Path) -> None:
        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            path = written_path(event, arguments)
            if path is not None and Path(path).name == name and path.startswith(f"{folder}/"):
                action()

        sys.addaudithook(hook)

    return meddle


def at_step(count: int, action: Action) -> Meddling:
    """Act before the n-th training step."""
    return _before("src.models.sdp_plus", "SDPPlus", "loss", count, action)


def at_scores(count: int, action: Action) -> Meddling:
    """Act before the n-th batch is scored, in a test, a validation or a prediction."""
    return _before("src.anomaly_module", "AnomalyModule", "forward", count, action)


def _before(module: str, owner: str, name: str, count: int, action: Action) -> Meddling:
    def meddle(_: Path) -> None:
        kind = getattr(importlib.import_module(module), owner)
        plain = getattr(kind, name)
        calls = 0

        def disturbed(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                action()
            return plain(*arguments)

        setattr(kind, name, disturbed)

    return meddle


def limit_files(size: int, *, deadly: bool = False) -> Action:
    """Have no file grow beyond `size` bytes from now on, whoever writes it, native code too.

    What is longer is cut there: with an error, or with the process's end.
    """

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return limit


def from_the_start(action: Action) -> Meddling:
    """Act before the command starts."""
    return lambda folder: action()


def small_disk(size: int) -> Meddling:
    """Have the command's folder be a disk of its own, with room for `size` bytes. What is on it is there afterwards.

    Raises:
        NoMountError: this process may not.
    """

    def meddle(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder.with_name(f"beside_{folder.name}")
        mount_small_disk(folder, size)
        plain_exit = os._exit

        def leave(code: int) -> None:
            shutil.copytree(folder, kept, symlinks=True)
            plain_exit(code)

        os._exit = leave  # type: ignore[assignment]

    return meddle


def mount_small_disk(folder: Path, size: int) -> None:
    """Mount a disk in a name space of this process's own: it is gone with the process.

    Raises:
        NoMountError: this process may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user, private = 0x00020000, 0x10000000, (1 << 18) | (1 << 14)
    if libc.unshare(new_mounts) and libc.unshare(new_mounts | new_user):
        raise NoMountError(os.strerror(ctypes.get_errno()))
    libc.mount(b"none", b"/", None, private, None)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()):
        raise NoMountError(os.strerror(ctypes.get_errno()))
