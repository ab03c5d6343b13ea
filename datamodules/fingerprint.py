"""A data set's identity for the record of a run: file names, sizes and counts. No image is opened."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datamodules.records import ANOMALOUS, NORMAL, Record


def count_records(records: Sequence[Record]) -> dict[str, int]:
    """Count ``images``, ``normal``, ``anomalous`` and the ``bytes`` of their images and masks."""
    return {
        "images": len(records),
        "normal": sum(record.label == NORMAL for record in records),
        "anomalous": sum(record.label == ANOMALOUS for record in records),
        "bytes": sum(path.stat().st_size for path in files_of(records)),
    }


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """SHA-256 over (path relative to ``root``, size in bytes), sorted by path: the same wherever the data lies."""
    digest = hashlib.sha256()
    for name, size in sorted((path.relative_to(root).as_posix(), path.stat().st_size) for path in paths):
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))  # names are bytes to Linux
    return digest.hexdigest()


def fingerprint_records(records: Sequence[Record], root: Path) -> dict[str, Any]:
    """``categories`` {category: counts}, ``files`` and ``bytes`` in total, and ``sha256`` over all files."""
    by_category: dict[str, list[Record]] = {}
    for record in records:
        by_category.setdefault(record.category, []).append(record)
    categories = {category: count_records(own) for category, own in by_category.items()}
    files = files_of(records)
    return {
        "categories": categories,
        "files": len(files),
        "bytes": sum(counts["bytes"] for counts in categories.values()),
        "sha256": hash_files(files, root),
    }


def files_of(records: Iterable[Record]) -> list[Path]:
    """Images and masks, in the records' order."""
    return [path for record in records for path in (record.image_path, record.mask_path) if path is not None]
