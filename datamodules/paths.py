"""Paths that come from a file or a command line, joined so that they can't leave the folder they belong to."""

from pathlib import Path, PurePosixPath, PureWindowsPath

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
    """
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or PureWindowsPath(name).anchor or name.startswith("/") or ".." in parts:
        raise UserError(f"Expected {what} to be a path below {root}, without '..', but got {name!r}")
    return root / name
