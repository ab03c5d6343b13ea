"""A data set's identity for the record of a run: file names, sizes and counts. No image is opened."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datamodules.records import ANOMALOUS, NORMAL, Record


def count_records(records: Sequence[Record]) -> dict[str, int]:
    """Count ``images``, ``normal``, ``anomalous`` and the ``bytes`` of the image and mask files.

    >>> count_records([])
    {'images': 0, 'normal': 0, 'anomalous': 0, 'bytes': 0}
    """
    return {
        "images": len(records),
        "normal": sum(record.label == NORMAL for record in records),
        "anomalous": sum(record.label == ANOMALOUS for record in records),
        "bytes": sum(_size(path) for record in records for path in record.files),
    }


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """Hash (path relative to ``root``, size in bytes) of all files by SHA-256: the same wherever the data set lies.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.png").write_bytes(b"12345")
    ...     digest = hash_files([Path(folder, "a.png")], Path(folder))
    >>> digest == hashlib.sha256(b"a.png\\0" b"5\\n").hexdigest()
    True
    """
    digest = hashlib.sha256()
    for name, size in sorted((path.relative_to(root).as_posix(), _size(path)) for path in paths):
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))  # names are bytes to Linux
    return digest.hexdigest()


def fingerprint_records(records: Sequence[Record], root: Path) -> dict[str, Any]:
    """Describe all files: ``categories`` {category: counts}, ``files`` and ``bytes`` in total, and their ``sha256``.

    >>> fingerprint_records([], Path("data"))["files"]
    0
    """
    by_category: dict[str, list[Record]] = {}
    for record in records:
        by_category.setdefault(record.category, []).append(record)
    categories = {category: count_records(own) for category, own in by_category.items()}
    files = [path for record in records for path in record.files]
    return {
        "categories": categories,
        "files": len(files),
        "bytes": sum(counts["bytes"] for counts in categories.values()),
        "sha256": hash_files(files, root),
    }


def _size(path: Path) -> int:
    """In bytes; 0 of a file that a list of photos names and that is not there."""
    return path.stat().st_size if path.is_file() else 0
