"""What a stranger opens to follow a run: `python -m experiments.benchmarks.trace eval +exp=sdp_demo`.

Runs a command in this process and prints how many files and functions of `src` and `datamodules` it enters, and how
many of them stand on the stack at once: for the whole command, and from `Trainer.test` to its end. Every Python
function counts (`sys.setprofile`); those within a function count with it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from lightning import Trainer

ROOT = f"{Path(__file__).resolve().parents[2]}/"
OWN = (f"{ROOT}src/", f"{ROOT}datamodules/")
COMMANDS = ("train", "eval", "predict")
_IS_FUNCTION = 1  # of a code's flags: neither a module nor the body of a class


class Trace:
    """What was entered."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.depth = 0

    def add(self, frame: FrameType) -> None:
        """Note a frame, and how many of ours are below it."""
        name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name).split(".<locals>")[0]
        self.functions.add((frame.f_code.co_filename, name))
        self.depth = max(self.depth, sum(is_ours(one.f_code) for one in stack(frame)))

    def __str__(self) -> str:
        files = {file for file, _ in self.functions}
        return f"{len(files)} files, {len(self.functions)} functions, depth {self.depth}"


def is_ours(code: CodeType) -> bool:
    """Whether code is a function of the project."""
    return code.co_filename.startswith(OWN) and bool(code.co_flags & _IS_FUNCTION)


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    """The frame and those that have called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def main() -> None:
    """Run the command that the command line names, and print what it entered."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"error: expected one of {', '.join(COMMANDS)} and its options, but got {sys.argv[1:] or 'nothing'}")
    command = sys.argv[1]
    sys.argv = [f"src/{command}.py", *sys.argv[2:]]
    whole, in_test = Trace(), Trace()
    test, testing = Trainer.test, False

    def traced(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal testing
        testing = True
        try:
            return test(trainer, *args, **kwargs)
        finally:
            testing = False

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and is_ours(frame.f_code):
            whole.add(frame)
            if testing:
                in_test.add(frame)

    setattr(Trainer, "test", traced)  # noqa: B010 - mypy refuses the assignment
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        import_module(f"src.{command}").main()
    finally:
        sys.setprofile(None)
        print(f"whole command: {whole}\nTrainer.test: {in_test}")


if __name__ == "__main__":
    main()
