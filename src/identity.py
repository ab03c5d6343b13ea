"""What decides the result of a computation beside its input and its settings: the code and the machine.

What is kept on disk between runs carries both in its key, so that a run finds only what it would compute itself.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from src.files import sha256_of

# By the name under which they are imported. Their versions tell their code.
_RELEASES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip": "open_clip_torch",
    "timm": "timm",
    "transformers": "transformers",
    "lightning": "lightning",
    "PIL": "pillow",
    "albumentations": "albumentations",
    "cv2": "opencv-python-headless",
    "numpy": "numpy",
}
_PROJECT = Path(__file__).resolve().parent


class NoSource(Exception):  # noqa: N818 - no error, only a reason to do without
    """Some code has no source that can be read; the message says which.

    Example:
        >>> identify_code([type("TypedIn", (), {})])
        Traceback (most recent call last):
          ...
        src.identity.NoSource: the source of src.identity.TypedIn can't be read, so a change of it would not show
    """


def identify_code(classes: Iterable[type]) -> dict[str, Any]:
    """Identify the code of some classes and of their bases: what is returned changes whenever the code does.

    Of the project these are the sources in `src/models` and `src/clip`, and the file of a class that is elsewhere in
    `src`. Of other packages, such as the user's own, it is every .py file, since a method may be spread over them.

    Returns:
        The classes' names, a hash for each top-level package or module, and the versions of those that have releases.

    Raises:
        NoSource: a class was not read from a Python file: it was typed in, made while running, or compiled.

    Example:
        >>> from datamodules.folder import Folder
        >>> identity = identify_code([Folder])
        >>> identity["classes"], identity["releases"]["torch"] == version("torch")
        (['datamodules.folder.Folder'], True)
    """
    classes = set(classes)
    by_package: dict[str, set[type]] = {}
    for base in {base for one in classes for base in one.__mro__}:
        package = _package(base)
        if package not in sys.stdlib_module_names and package not in _RELEASES:
            by_package.setdefault(package, set()).add(base)
        elif not _is_part_of_its_module(base) or issubclass(base, torch.jit.ScriptModule):
            raise _no_source(base)
    return {
        "classes": sorted(map(_name, classes)),
        "sources": {package: _hash_of_sources(package, frozenset(members)) for package, members in by_package.items()},
        "releases": identify_releases(),
    }


def identify_releases() -> dict[str, str | None]:
    """The versions of Python and of the packages that results depend on; None for one that is not installed.

    Example:
        >>> identify_releases()["python"] == platform.python_version()
        True
    """
    return versions_of(_RELEASES.values())


def versions_of(releases: Collection[str]) -> dict[str, str | None]:
    """The version of Python and of each of some packages; None for one that is not installed.

    Example:
        >>> versions_of(["no-such-package"])["no-such-package"] is None
        True
    """
    versions: dict[str, str | None] = {"python": platform.python_version()} | dict.fromkeys(releases)
    for release in releases:
        with suppress(PackageNotFoundError):
            versions[release] = version(release)
    return versions


def identify_machine(device: torch.device) -> list[Any]:
    """Identify where a computation runs: another processor or number of threads gives other last digits.

    Example:
        >>> kind, processor, instructions, threads = identify_machine(torch.device("cpu"))
        >>> kind, threads == torch.get_num_threads()
        ('cpu', True)
    """
    if device.type == "cuda":
        return [device.type, torch.cuda.get_device_name(device)]
    return [device.type, _processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


@cache
def _hash_of_sources(package: str, members: frozenset[type]) -> str:
    """The hash of a package's sources when its classes were first asked for.

    Not of what they are now: a process goes on with the code that it has loaded, whatever is edited meanwhile.
    """
    is_project = package == _PROJECT.name
    folders = (
        [_PROJECT / "models", _PROJECT / "clip"] if is_project else getattr(sys.modules.get(package), "__path__", [])
    )
    files = {source: source.name for source in map(_source_of, members)}
    for folder in (Path(folder).resolve() for folder in folders):
        files |= {path: path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    content = [[name, sha256_of(path)] for path, name in sorted(files.items(), key=lambda file: file[::-1])]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _source_of(member: type) -> Path:
    """The file that a class stands in."""
    try:
        inspect.getsource(member)
        return Path(inspect.getfile(member)).resolve(strict=True)
    except (OSError, TypeError) as error:
        raise _no_source(member) from error


def _is_part_of_its_module(one: type) -> bool:
    """Whether a class is where it says it is; one that is made while running names the module of its maker."""
    found: Any = sys.modules.get(one.__module__)
    for part in one.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is one


def _no_source(one: type) -> NoSource:
    return NoSource(f"the source of {_name(one)} can't be read, so a change of it would not show")


def _name(one: type) -> str:
    return f"{one.__module__}.{one.__qualname__}"


def _package(one: type) -> str:
    """The top-level package or module of a class; of a module that was started by `python -m`, its real one."""
    module = one.__module__
    if module == "__main__":
        module = getattr(getattr(sys.modules[module], "__spec__", None), "name", module)
    return module.partition(".")[0]


@cache
def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
