"""How a signal ends a run, and how a process ends with the one that started it. Nothing heavy is imported here."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import ClassVar

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STARTED_BY = "CLIP_AD_PROCESS"  # in the environment of what this project starts: the number of the process that did
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")  # set by torchrun, srun and Lightning
_SECONDS_TO_END = 5


class StoppedError(BaseException):
    """Ends a run on a signal.

    It is no Exception, KeyboardInterrupt or SystemExit, since Lightning, Hydra and joblib catch these.

    Example:
        >>> issubclass(StoppedError, Exception)  # `except Exception` lets it pass
        False
    """


class Signals:
    """Turns the first SIGTERM or SIGINT into a `StoppedError`; a second one, during the clean-up, ends the process.

    Attributes:
        received: the number of the first signal, or None.

    Example:
        >>> signals = Signals()
        >>> with signals.raised():
        ...     signals.handle(signal.SIGTERM, None)  # as Python does when the signal comes
        Traceback (most recent call last):
          ...
        src.stopping.StoppedError: SIGTERM
        >>> signals.received == signal.SIGTERM
        True
    """

    listening: ClassVar[Signals | None] = None

    def __init__(self) -> None:
        self.received: int | None = None
        self._process = os.getpid()

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Listen within the block. Only the main thread can, since Python gives signals to no other."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.getsignal(number) for number in _SIGNALS}
        Signals.listening = self
        listen_again()
        try:
            yield
        finally:
            Signals.listening = None
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What Python calls on a signal."""
        # In a forked process, such as a loader's, a signal means what it always does.
        if os.getpid() != self._process:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
        elif self.received is not None:
            os._exit(128 + number)
        else:
            self.received = number
            raise StoppedError(signal.Signals(number).name)


@contextmanager
def only_stops() -> Iterator[None]:
    """End the block in a `StoppedError` if a signal came, even if the clean-up has raised another error since.

    Example:
        >>> signals = Signals()
        >>> with signals.raised(), only_stops():
        ...     try:
        ...         signals.handle(signal.SIGTERM, None)  # as Python does when the signal comes
        ...     finally:
        ...         raise ValueError("a file is half-written")
        Traceback (most recent call last):
          ...
        src.stopping.StoppedError: SIGTERM
    """
    try:
        yield
    except BaseException as error:
        if Signals.listening is None or Signals.listening.received is None:
            raise
        raise StoppedError(signal.Signals(Signals.listening.received).name) from error


def listen_again() -> None:
    """Handle SIGTERM again after Lightning has taken it: Lightning waits for a batch's end, and processes may hang."""
    if Signals.listening is not None:
        for number in _SIGNALS:
            signal.signal(number, Signals.listening.handle)


def end_processes(processes: Iterable[subprocess.Popen[str]]) -> None:
    """End processes. Each gets some seconds to end those that it has started, and is killed then.

    Example:
        >>> process = subprocess.Popen(["sleep", "60"], text=True)
        >>> end_processes([process])
        >>> process.returncode == -signal.SIGTERM
        True
    """
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_END
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.wait()


def end_with_parent() -> None:
    """If a process of this project has started this one, end soon after that one ends, for whatever reason."""
    parent = os.getppid()
    if os.environ.get(_STARTED_BY) == str(parent):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    os.environ[_STARTED_BY] = str(os.getpid())


def speaks() -> bool:
    """Whether this process tells how the run ended: only the first of several does. Needs no Lightning.

    Example:
        >>> speaks()  # here is one process only
        True
    """
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
