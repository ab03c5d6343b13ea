"""Arrays on disk that prove what they are: a file that was damaged, or put in another's place, is not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from src.files import write_bytes

_ARRAY = "array"  # its name in its file
_CHECKSUM = "sha256"


def write_array(path: Path, name: str, array: Tensor) -> None:
    """Write an array with a checksum of it and of its name.

    It is not synced: what a power cut takes is found by the checksum.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    array = array.contiguous().cpu()
    write_bytes(path, save({_ARRAY: array}, {_CHECKSUM: checksum(name, array)}), sync=False)


def read_array(path: Path, name: str) -> Tensor | None:
    """The array that was written under a name, mapped; None if it is not there or not as it was written.

    A map holds no file open, so that a run may have any number of them; changing it does not change the file.
    """
    try:
        with safe_open(path, "pt") as file:
            written, array = (file.metadata() or {}).get(_CHECKSUM), file.get_tensor(_ARRAY)
    except (OSError, SafetensorError):
        return None
    return array if written == checksum(name, array) else None


def checksum(name: str, array: Tensor) -> str:
    """The hash of an array's name, type, shape and content."""
    digest = hashlib.sha256(f"{name} {array.dtype} {list(array.shape)} ".encode())
    digest.update(array.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
