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
from torch import Tensor

from src.arrays import read_array, write_array
from src.identity import identify_machine

_CPU = torch.device("cpu")


class SentenceCache:
    """Embeddings of lists of sentences, in `<folder>/<hash of tower, machine and sentences>.safetensors`.

    Runs may share a folder: a file is there whole or not at all, and what is damaged is encoded again.

    Args:
        folder: where the files are.
        tower: everything but the machine and the sentences that the embeddings depend on.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     cache = SentenceCache(Path(folder), tower="my CLIP")
        ...     cache.write(["a photo of a cup"], torch.ones(1, 2))
        ...     print(cache.read(["a photo of a cup"]), cache.read(["a photo of a mug"]))
        tensor([[1., 1.]]) None
    """

    def __init__(self, folder: Path, tower: str) -> None:
        self.folder = folder
        self.tower = tower

    def read(self, sentences: Sequence[str], device: torch.device = _CPU) -> Tensor | None:
        """What a device made of K sentences, (K, D) float32 on the CPU; None if it is not there, or damaged."""
        path = self._file(sentences, device)
        embeddings = read_array(path, path.stem)
        return None if embeddings is None else embeddings.clone()  # to memory that is aligned as a tower's output is

    def write(self, sentences: Sequence[str], embeddings: Tensor) -> None:
        """Keep the embeddings (K, D) of K sentences; a run that can't goes on with a warning."""
        path = self._file(sentences, embeddings.device)
        try:
            write_array(path, path.stem, embeddings)
        except OSError as error:
            warnings.warn(
                f"can't keep sentence embeddings in {self.folder}: {error.strerror}; "
                "set paths.cache_dir to a folder that can be written",
                stacklevel=2,
            )

    def _file(self, sentences: Sequence[str], device: torch.device) -> Path:
        content = json.dumps([self.tower, identify_machine(device), *sentences])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"
