"""Arrays on disk, one file each: whole or not there, mapped when they are read, and bounded in their total size.

Several processes may share a store without locks. A file is written under another name and renamed; two that write the
same one write the same content; and one that is removed stays readable where it is mapped already.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from src.arrays import read_array, write_array


class NotKept(Exception):  # noqa: N818 - no error, only a reason to do without
    """Features are not kept on disk; the message says why.

    Example:
        >>> ArrayStore(Path("features"), max_bytes=1e9).make_room(needed=2 * 10**9, keep=())
        Traceback (most recent call last):
          ...
        src.features.store.NotKept: 2 GB are needed, feature_cache.max_gb is 1
    """


class ArrayStore:
    """A folder of arrays.

    Args:
        root: the folder; made as needed.
        max_bytes: of all its files together.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     store = ArrayStore(Path(folder), max_bytes=1e9)
        ...     path = store.path("how", "surgery", "from_what")
        ...     print(store.read(path), store.write(path, torch.ones(2)))
        None tensor([1., 1.])
    """

    def __init__(self, root: Path, max_bytes: float) -> None:
        self.root = root
        self.max_bytes = max_bytes

    def path(self, key: str, part: str, name: str) -> Path:
        """The file of one array: `key` says how it was computed, `name` from what; at least three characters."""
        return self.root / key / part / name[:2] / f"{name[2:]}.safetensors"

    def read(self, path: Path) -> Tensor | None:
        """An array, mapped, see `read_array`; None if it is not there, or damaged. It counts as used just now."""
        array = read_array(path, self._name(path))
        if array is None:
            return None
        with suppress(OSError):  # a store that is read only has no order of use
            os.utime(path)
        return array

    def write(self, path: Path, array: Tensor) -> Tensor:
        """Write an array and give it back, mapped.

        Raises:
            OSError: the disk is full, or the folder can't be written.
            NotKept: the file can't be mapped.
        """
        write_array(path, self._name(path), array)
        written = self.read(path)
        if written is None:
            raise NotKept(f"{path} can't be mapped; a system maps so many files at once (Linux: vm.max_map_count)")
        return written

    def make_room(self, needed: int, keep: Collection[Path]) -> None:
        """Remove the files that were used least recently, until `needed` more bytes fit.

        Args:
            needed: bytes to come.
            keep: files that must stay.

        Raises:
            NotKept: the limit or the disk is too small. Nothing has been removed then.
        """
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        removable = [(size, path) for _, size, path in files if path not in keep]
        removable_bytes = sum(size for size, _ in removable)
        least = used - removable_bytes + needed
        if least > self.max_bytes:
            raise NotKept(f"{_gb(least)} are needed, feature_cache.max_gb is {self.max_bytes / 1e9:g}")
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if needed > free + removable_bytes:
            raise NotKept(f"{_gb(needed)} are needed and {_gb(free)} are free in {self.root}")
        for size, path in removable:
            if used + needed <= self.max_bytes and needed <= free:
                break
            path.unlink(missing_ok=True)
            used, free = used - size, free + size

    def _name(self, path: Path) -> str:
        """What a file says of itself: how and from what it was computed, wherever the store is."""
        return path.relative_to(self.root).as_posix()

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, size and path of each; also of what a run that was killed left half-written."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # another run has removed it just now
                    status = path.stat()
                    yield status.st_mtime, status.st_size, path


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
