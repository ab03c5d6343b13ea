"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name beside `path`, then rename; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process ids repeat between machines and containers that share a folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; a file name in another encoding comes out as the bytes it was."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people read too; a value that is not a number is an error, not a bare NaN."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """A file's hash, to say in provenance which one it was."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
