"""A place for one fault: commands run in forked children, are disturbed there, and are judged by what they leave.

A child is forked from a process that has its imports loaded, so that a command on the six images of the golden file
takes a second or two. It has a home folder, a folder for temporary files and a working folder of its own.
"""

from __future__ import annotations

import atexit
import csv
import hashlib
import importlib
import json
import multiprocessing.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from wandb.sdk.data_types._private import MEDIA_TMP

import src.models.sdp_plus
import src.reproduce
import src.run.build
import src.run.merge
import src.run.steps
import src.sweeps.collect
from experiments.faults.meddling import Meddling, NoMountError, written_path
from tests.golden_reference import Golden

torch.set_num_threads(1)  # a child can't use the threads of its parent

SECONDS = 90  # that a command may take: it has 1 or 2 to do
_NO_MOUNT = 71  # the exit code of a child that may not mount a disk
_GRACE = 8.0  # seconds that what a command has started may need to see that it has ended
_LIBRARIES = ("CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR")
RESULTS = ("metrics.json", "predictions.csv")


class NotHereError(Exception):
    """A fault can't be done on this machine; the message says why."""


class FailedError(Exception):
    """What should hold after a fault does not."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: how it is called on the command line.
        item: the number of the requirement that it belongs to.
        check: does it in a place of its own, and raises a `FailedError` if what should hold afterwards does not.
    """

    name: str
    item: int
    check: Callable[[Place], None]


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code as a shell tells it, what it printed, and the folder it was told."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def said(self) -> list[str]:
        """The lines on stderr that are no warnings."""
        return [line for line in self.err.splitlines() if line.strip() and not line.startswith("warning: ")]

    @property
    def warnings(self) -> str:
        """The warnings, with stdout, where Lightning may have put some of its own."""
        return "\n".join(line for line in self.err.splitlines() if line.startswith("warning: "))

    @property
    def metrics(self) -> dict[str, Any]:
        """Its metrics.json."""
        return dict(json.loads((self.folder / "metrics.json").read_text()))

    @property
    def provenance(self) -> dict[str, Any]:
        """Its provenance.json."""
        return dict(json.loads((self.folder / "provenance.json").read_text()))

    @property
    def rows(self) -> list[dict[str, str]]:
        """Its predictions.csv."""
        with (self.folder / "predictions.csv").open(newline="") as file:
            return list(csv.DictReader(file))


class Tiny:
    """What all faults share: a small CLIP, six images in two layouts, and the results of runs that nothing disturbed.

    Args:
        root: a new folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "clip").mkdir(parents=True)
        self.golden = Golden("a", root / "clip")
        self.data = root / "data"
        self.golden.write_mvtec(self.data / "mvtec")
        write_visa(self.data / "mvtec", self.data / "visa")
        self.results: dict[tuple[str, ...], Done] = {}


class Place:
    """Where a fault happens.

    Args:
        root: a new folder, the place's own.
        tiny: what it shares with others.
    """

    def __init__(self, root: Path, tiny: Tiny) -> None:
        self.root = root
        self.tiny = tiny
        self.count = 0
        for name in ("home", "tmp", "work", "logs"):
            (root / name).mkdir(parents=True)
        shutil.copytree(tiny.data, root / "data")
        self.mvtec, self.visa = root / "data" / "mvtec", root / "data" / "visa"

    def start(self, command: str, *overrides: str, to: str = "run", meddle: Sequence[Meddling] = ()) -> Running:
        """Start a command; see `run`."""
        return Running(self, command, list(overrides), to, meddle)

    def run(self, command: str, *overrides: str, to: str = "run", meddle: Sequence[Meddling] = ()) -> Done:
        """Run a command to its end.

        Args:
            command: train, eval or predict, with the tiny CLIP; merge, collect or reproduce, with arguments alone.
            overrides: the rest of the command line.
            to: the name of the folder it is told.
            meddle: what disturbs it; called in the child.

        Raises:
            FailedError: it hangs, prints a traceback, writes outside the folders it was told, changes what others
                have left, or leaves processes behind.
        """
        return self.start(command, *overrides, to=to, meddle=meddle).wait()

    def ok(self, command: str, *overrides: str, to: str = "run", meddle: Sequence[Meddling] = ()) -> Done:
        """Run, and expect success."""
        done = self.run(command, *overrides, to=to, meddle=meddle)
        expect(done.code == 0, f"{command} ended with {done.code}: {' '.join(done.said)[-200:]}")
        return done

    def refused(
        self, command: str, *overrides: str, word: str = "", to: str = "run", meddle: Sequence[Meddling] = ()
    ) -> str:
        """Run, and expect exit code 1 and one line on stderr, with a word in it. Returns the line."""
        done = self.run(command, *overrides, to=to, meddle=meddle)
        return is_refused(done, word)

    def undisturbed(self, command: str, *overrides: str) -> Done:
        """The results of a command that nothing disturbs, on the data as they were, with an empty cache."""
        known = self.tiny.results
        key = (command, *overrides)
        if key not in known:
            place = Place(self.tiny.root / f"undisturbed_{len(known)}", self.tiny)
            known[key] = place.ok(command, *overrides)
        return known[key]

    def same(self, done: Done, reference: Done) -> None:
        """Expect the results of another run, byte by byte."""
        for name in RESULTS:
            if (reference.folder / name).exists():
                there = done.folder / name
                expect(there.is_file(), f"there is no {name}")
                equal = there.read_bytes() == (reference.folder / name).read_bytes()
                expect(equal, f"{name} is not that of an undisturbed run")

    def goes_on(self, command: str, *overrides: str, to: str = "run") -> Done:
        """Run the same command again, and expect the results of an undisturbed run."""
        done = self.ok(command, *overrides, to=to)
        self.same(done, self.undisturbed(command, *overrides))
        return done

    def given(self, what: Callable[[Place], object], *folders: str) -> None:
        """Copy the folders that a function leaves in a place of its own, where it is called once for all faults."""
        name = f"given_{getattr(what, '__name__', '')}"
        made = self.tiny.root / name
        if not made.exists():
            try:
                what(Place(made, self.tiny))
            except BaseException:
                shutil.rmtree(made)
                raise
        for folder in folders:
            shutil.copytree(made / folder, self.root / folder)
            for path in (self.root / folder).rglob("*.json"):
                path.write_text(path.read_text().replace(str(made), str(self.root)))

    def write(self, part: float, command: str, *overrides: str) -> int:
        """Which of the writes of an undisturbed run is at this part of all of them, counted from 1."""
        folder = self.undisturbed(command, *overrides).folder
        lines = (folder.parent / "logs" / "1" / "written").read_text(errors="surrogateescape").splitlines()
        own = [line for line in lines if line == f"+{folder}" or line.startswith(f"+{folder}/")]
        return max(1, round(part * len(own)))

    def argv(self, command: str, overrides: Sequence[str], to: str) -> list[str]:
        """The command line."""
        if command not in ("train", "eval", "predict"):
            return [f"{command}.py", *overrides]
        own = [
            f"backbone.config={self.tiny.golden.config_path}",
            f"backbone.pretrained={self.tiny.golden.weights_path}",
            "trainer=cpu",
            "~callbacks.progress",
            "+trainer.enable_progress_bar=false",
            "prompts.templates=['a photo of a {}.']",
            "model.representative=mean",
            "test_data.num_workers=0",
            f"paths.data_dir={self.root / 'data'}",
            f"paths.cache_dir={self.root / 'cache'}",
            f"paths.output_dir={self.root / to}",
        ]
        keys = {override.partition("=")[0].lstrip("+~") for override in overrides}
        mine = [one for one in own if one.partition("=")[0].lstrip("+~") not in keys]
        first = [one for one in overrides if one == "-m"]
        rest = [one for one in overrides if one != "-m"]
        return [f"src/{command}.py", *first, *mine, *rest]

    def files(self) -> dict[str, str]:
        """The content of all files of the place, by path; a link by where it leads."""
        found = {}
        for folder, folders, names in os.walk(self.root):
            if Path(folder) == self.root:
                folders[:] = [name for name in folders if name not in ("logs", "tmp", "cache", "home")]
            for name in [*names, *folders]:
                path = Path(folder, name)
                key = path.relative_to(self.root).as_posix()
                if path.is_symlink():
                    found[key] = f"-> {path.readlink()}"
                elif path.is_file():
                    found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


class Running:
    """A command in a child."""

    def __init__(self, place: Place, command: str, overrides: list[str], to: str, meddle: Sequence[Meddling]) -> None:
        place.count += 1
        self.place, self.command, self.folder, self.to = place, command, place.root / to, to
        logs = place.root / "logs" / str(place.count)
        logs.mkdir()
        self.logs = logs
        self.before = place.files()
        argv = place.argv(command, overrides, to)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _live(place, command, argv, self.folder, logs, meddle)
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)

    def wait(self, seconds: float = SECONDS) -> Done:
        """Wait for its end, and judge it; see `Place.run`."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise FailedError(f"{self.command} hangs: it has not ended after {seconds:g} s")
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(status)
        if code == _NO_MOUNT:
            raise NotHereError("this process may not mount a disk")
        texts = [(self.logs / name).read_text(errors="replace") for name in ("out", "err")]
        done = Done(code if code >= 0 else 128 - code, *texts, self.folder)
        self._judge(done)
        return done

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def until(self, there: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Wait until something is so.

        Raises:
            FailedError: it never is.
        """
        end = time.monotonic() + seconds
        while not there():
            expect(time.monotonic() < end, f"waited in vain until {what}")
            time.sleep(0.02)

    def _judge(self, done: Done) -> None:
        left = list(_processes_of(self.pid))
        end = time.monotonic() + _GRACE
        while left and time.monotonic() < end:
            time.sleep(0.1)
            left = list(_processes_of(self.pid))
        if left:
            os.killpg(self.pid, signal.SIGKILL)
            raise FailedError(f"{len(left)} processes that it has started are left {_GRACE:g} s after its end")
        if "Traceback (most recent call last)" in done.out + done.err:
            raise FailedError(f"exit code {done.code} and a traceback: {_last(done)}")
        lines = (self.logs / "written").read_text(errors="surrogateescape").splitlines()
        outside = [line[1:] for line in lines if not self._may_write(line[1:])]
        expect(not outside, f"it wrote outside: {', '.join(outside[:3])}")
        after = self.place.files()
        mine = f"{self.to}/"
        changed = [
            name
            for name in sorted({*self.before, *after})
            if self.before.get(name) != after.get(name) and not name.startswith(mine) and not self._is_others(name)
        ]
        expect(not changed, f"it changed what is not its own: {', '.join(changed[:3])}")

    def _is_others(self, name: str) -> bool:
        """Whether a file is what the command is there to write, or what a command beside it writes."""
        if self.command == "reproduce":
            return "-reproduced-" in name
        if self.command == "merge":
            return name.startswith("merged/")
        if self.command == "collect":
            return name.endswith(("/trials.md", "/trials.csv"))
        return name.startswith("beside")

    def _may_write(self, line: str) -> bool:
        # W&B has made a folder of its own when it was imported, by the parent.
        return line.startswith((f"{self.place.root}/", "/dev/", "/proc/", MEDIA_TMP.name))


def _last(done: Done) -> str:
    """The last line of a traceback."""
    text = done.err if "Traceback" in done.err else done.out
    return text.strip().splitlines()[-1][:200]


def _live(place: Place, command: str, argv: list[str], folder: Path, logs: Path, meddle: Sequence[Meddling]) -> None:
    """The child's life; it does not return."""
    code = 70
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name in _LIBRARIES:
            os.environ[name] = str(place.root / "home" / name)
        os.environ.update(HOME=str(place.root / "home"), TMPDIR=str(place.root / "tmp"), WANDB_MODE="offline")
        tempfile.tempdir = None
        _forget_exit_functions()
        sys.dont_write_bytecode = True
        os.chdir(place.root / "work")
        torch.set_num_threads(1)
        _note_what_is_written(logs / "written")
        sys.argv = argv
        for disturb in meddle:
            disturb(folder)
        code = _run(command, argv[1:])
    except NoMountError:
        code = _NO_MOUNT
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
        with suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _forget_exit_functions() -> None:
    """What libraries do at the exit of the process that imported them, such as to remove folders, is the parent's."""
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):
        finalizer.detach()
    weakref.finalize._registered_with_atexit = False
    atexit.register(multiprocessing.util._exit_function)


def _run(command: str, arguments: list[str]) -> int:
    """Run a command as the interpreter would, to its exit code."""
    try:
        if command == "collect":
            return src.sweeps.collect.main()
        if command == "merge":
            src.run.merge.main()
        elif command == "reproduce":
            src.reproduce.run = _run_again
            src.reproduce.main()
        else:
            importlib.import_module(f"src.{command}").main()
        return 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return int(stop.code or 0)
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()


def _run_again(command: Sequence[str]) -> int:
    """What `src.reproduce` starts, in a child of its own instead of in a new interpreter."""
    name = command[2].removeprefix("src.")
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        sys.argv = [f"src/{name}.py", *command[3:]]
        code = _run(name, list(command[3:]))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _note_what_is_written(log: Path) -> None:
    """Write down each path that this process opens for writing, renames, links or removes."""
    note = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        path = written_path(event, arguments, removed=True)
        if path is not None:
            kind = "+" if written_path(event, arguments) else "-"
            line = path.replace("\n", "\\n")
            os.write(note, f"{kind}{line}\n".encode(errors="surrogateescape"))

    sys.addaudithook(hook)


def _processes_of(group: int) -> Iterator[int]:
    """The living processes of a group."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    yield int(entry.name)


def is_refused(done: Done, word: str = "") -> str:
    """Expect exit code 1 and one line on stderr. Returns the line."""
    expect(done.code == 1, f"expected exit code 1, but it is {done.code}: {' '.join(done.said)[-200:]}")
    is_line = len(done.said) == 1 and done.said[0].startswith("error: ")
    expect(is_line, f"expected one line 'error: ...', but got {len(done.said)}: {' / '.join(done.said)[-300:]}")
    expect(word in done.said[0], f"expected {word!r} in: {done.said[0][:300]}")
    return done.said[0]


def expect(holds: bool, otherwise: str) -> None:
    """Expect that something holds.

    Raises:
        FailedError: it does not, with what is so otherwise.
    """
    if not holds:
        raise FailedError(otherwise)


def write_visa(mvtec: Path, root: Path) -> None:
    """The same images in VisA's layout."""
    lines = ["object,split,label,image,mask"]
    for image in sorted(mvtec.glob("*/test/*/*.png")):
        category, defect = image.parts[-4], image.parts[-2]
        kind, label = ("Normal", "normal") if defect == "good" else ("Anomaly", "anomaly")
        path = Path(category, "Data", "Images", kind, image.name)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, root / path)
        mask = ""
        if label == "anomaly":
            mask = Path(category, "Data", "Masks", "Anomaly", image.name).as_posix()
            (root / mask).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(mvtec / category / "ground_truth" / defect / f"{image.stem}_mask.png", root / mask)
        lines.append(f"{category},test,{label},{path.as_posix()},{mask}")
    (root / "split_csv").mkdir(parents=True)
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")
