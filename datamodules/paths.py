"""Paths that come from a file or a command line, joined so that they can't leave the folder they belong to."""

import hashlib
from pathlib import Path, PureWindowsPath

from datamodules.errors import UserError


def below(root: Path, name: str, what: str) -> Path:
    """Join a name that somebody else has written to a folder.

    The name alone is checked. A symbolic link below ``root`` may lead elsewhere: whoever put it there decided so.

    Args:
        root: the folder.
        name: such as ``candle/Data/Images/000.JPG``; with ``/``, on any system.
        what: the name is, for the message: ``column image of split_csv/1cls.csv``.

    Raises:
        UserError: the name is empty or absolute, or goes up by ``..``.

    >>> below(Path("data"), "candle/Data/Images/000.JPG", "column image").as_posix()
    'data/candle/Data/Images/000.JPG'
    >>> below(Path("data"), "../000.JPG", "column image")
    Traceback (most recent call last):
    datamodules.errors.UserError: Expected column image to be a path below data, without '..', but got '../000.JPG'
    """
    # A Windows path takes both kinds of slashes for what they are, so that a name means the same on any system.
    path = PureWindowsPath(name)
    if not name or "\0" in name or path.anchor or ".." in path.parts:
        raise UserError(f"Expected {what} to be a path below {root}, without '..', but got {name!r}")
    return root / name


def sha256_of(path: Path) -> str:
    """Hash a file's content, to say which one it was.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "empty").touch()
    ...     print(sha256_of(Path(folder, "empty"))[:8])
    e3b0c442
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
