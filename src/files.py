"""How this project writes files, whole or not at all, and how it reads its own files again."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from datamodules.errors import UserError, reason_of
from datamodules.paths import sha256_of as sha256_of

T = TypeVar("T")
SPARE = 1 << 20
"""Bytes to leave on a disk by what a run can do without."""
_DEEPEST = 50  # levels of a JSON file; a configuration has about 5


@contextmanager
def replacing(path: Path, *, sync: bool = True, spare: int = 0) -> Iterator[Path]:
    """Give a temporary file name beside `path`; when the block ends, the file of that name replaces `path`.

    If the block fails, `path` stays as it was and the temporary file is removed. Folders are made as needed.

    Args:
        path: the file to write.
        sync: wait until the disk has it, so that a power cut loses neither the old content nor the new one. Leave it
            out only for what can be computed again and is checked when it is read.
        spare: bytes that the disk must have left afterwards, for files that are worth more.

    Raises:
        OSError: such as a full disk; the error has the name of `path`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "scores.txt")
        ...     with replacing(path) as temporary:
        ...         _ = temporary.write_text("0.9")
        ...     print(path.read_text(), temporary.exists())
        0.9 False
    """
    # Process ids repeat between machines that share a folder; and a long name of `path` leaves no room for more.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if spare:
            check_room(path.parent, spare)
        if sync:
            _sync(temporary)
        temporary.replace(path)
        if sync:
            _sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_room(folder: Path, spare: int) -> None:
    """Check that a disk has some bytes left.

    Raises:
        OSError: it has not.

    Example:
        >>> check_room(Path(), spare=0)
    """
    disk = shutil.disk_usage(folder)
    if disk.free < spare and disk.total:  # some disks do not say how large they are
        raise OSError(errno.ENOSPC, f"the disk has less than {spare >> 20} MB left", str(folder))


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files below a folder whose writers were killed. Nobody else may be writing there.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Path(folder, ".0123456789abcdef.tmp").touch()  # of a writer that was killed
        ...     remove_leftovers(Path(folder))
        ...     print(list(Path(folder).iterdir()))
        []
    """
    for path in folder.rglob(".*.tmp"):
        if re.fullmatch(r"\.[0-9a-f]{16}\.tmp", path.name):
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file whole or not at all, see `replacing`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "maps", "0.bin")  # folders are made as needed
        ...     write_bytes(path, b"123")
        ...     print(path.read_bytes())
        b'123'
    """
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8. A file name in another encoding is written as the bytes that it has on disk.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_text(Path(folder, "table.md"), "| trial |")
        ...     print(Path(folder, "table.md").read_text())
        | trial |
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a table.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_csv(Path(folder, "a.csv"), [("category", "image_AP"), ("cup", 0.5)])
        ...     print(Path(folder, "a.csv").read_text(), end="")
        category,image_AP
        cup,0.5
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON.

    Raises:
        ValueError: a number is NaN or infinite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "a.json"), {"seed": 7})
        ...     print(Path(folder, "a.json").read_text(), end="")
        {
          "seed": 7
        }
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, schema: type[T]) -> T:
    """Read a JSON file that this project has written.

    Args:
        path: the file.
        schema: its type, such as a TypedDict. Keys that the type does not name are kept, and not checked.

    Raises:
        FileNotFoundError: there is none.
        UserError: it can't be read, or is not what the project writes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "seeds.json")
        ...     write_json(path, {"first": 1, "second": 2})
        ...     print(read_json(path, dict[str, int]))
        {'first': 1, 'second': 2}
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise damaged(path, reason_of(error)) from error
    return parsed(text, schema, path)


def parsed(text: str, schema: type[T], path: Path) -> T:
    """Check JSON that was read from `path`, such as the header of a file of tensors; see `read_json`.

    Raises:
        UserError: it is no JSON, or not what the project writes.

    Example:
        >>> parsed('{"seed": 7}', dict[str, int], Path("a.json"))
        {'seed': 7}
    """
    try:
        content = json.loads(text)
        _check_values(content)
    except (ValueError, RecursionError) as error:
        raise damaged(path, reason_of(error)) from error
    return checked(content, schema, path)


def checked(content: Any, schema: type[T], path: Path) -> T:
    """Check what was read from `path` against its type, and return it as it is.

    Raises:
        UserError: it is of another type; the line names the first place.

    Example:
        >>> checked({"seed": "seven"}, dict[str, int], Path("a.json"))
        Traceback (most recent call last):
          ...
        datamodules.errors.UserError: a.json is damaged: seed: Input should be a valid integer
    """
    from pydantic import TypeAdapter, ValidationError  # a fifth of a second, and not every command reads such a file

    try:
        TypeAdapter(schema).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise damaged(path, f"{place}: {first['msg']}" if place else first["msg"]) from error
    result: T = content
    return result


def damaged(path: Path, reason: str) -> UserError:
    """The error to raise for a file of this project that is not as it was written.

    Example:
        >>> print(damaged(Path("a.json"), "it has no seed"))
        a.json is damaged: it has no seed
    """
    return UserError(f"{path} is damaged: {reason}")


def _sync(path: Path) -> None:
    """Have the disk keep a file's content, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # what a disk says that knows no such thing
            raise
    finally:
        os.close(descriptor)


def _check_values(content: Any, depth: int = 0) -> None:
    """Refuse what JSON can hold and no file of ours does: it would be an error later, or a number that is none.

    Raises:
        ValueError: too many levels, a number that is not finite, text that can't be written.
    """
    if depth > _DEEPEST:
        raise ValueError(f"it has more than {_DEEPEST} levels")
    if isinstance(content, float) and not math.isfinite(content):
        raise ValueError(f"{content} is not a finite number")
    if isinstance(content, str):
        content.encode("utf-8", "surrogateescape")  # names of files are bytes to Linux
    for value in (*content, *content.values()) if isinstance(content, dict) else ():
        _check_values(value, depth + 1)
    for value in content if isinstance(content, list) else ():
        _check_values(value, depth + 1)
