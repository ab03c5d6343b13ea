"""Sentence embeddings on disk: one file for each list of sentences that a tower has encoded.

K sentences, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from src.files import write_bytes

_UNIT = 1e-4  # how far from 1 a length may be


class SentenceCache:
    """Embeddings of lists of sentences, in `<folder>/<hash of tower and sentences>.safetensors`.

    Runs may share a folder: a file is there whole or not at all, and what can't be read is encoded again.

    Args:
        folder: where the files are.
        tower: everything but the sentences that the embeddings depend on.
    """

    def __init__(self, folder: Path, tower: str) -> None:
        self.folder = folder
        self.tower = tower

    def read(self, sentences: Sequence[str]) -> Tensor | None:
        """The embeddings of K sentences, (K, D) of unit length, float32; None if they are not there, or damaged."""
        try:
            embeddings = load(self._file(sentences).read_bytes())["embeddings"]
        except (OSError, SafetensorError, KeyError):
            return None
        lengths = embeddings.norm(dim=-1)
        is_whole = lengths.shape == (len(sentences),) and torch.allclose(lengths, torch.ones(()), rtol=0, atol=_UNIT)
        return embeddings if is_whole else None

    def write(self, sentences: Sequence[str], embeddings: Tensor) -> None:
        """Keep the embeddings (K, D) of K sentences; a run that can't goes on with a warning."""
        try:
            write_bytes(self._file(sentences), save({"embeddings": embeddings.contiguous().cpu()}))
        except OSError as error:
            warnings.warn(
                f"can't keep sentence embeddings in {self.folder}: {error.strerror}; "
                "set paths.cache_dir to a folder that can be written",
                stacklevel=2,
            )

    def _file(self, sentences: Sequence[str]) -> Path:
        content = json.dumps([self.tower, *sentences])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"
