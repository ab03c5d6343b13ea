"""Arrays on disk with a checksum: a file that is damaged, or was written under another name, counts as missing."""

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

    The file is not synced: if a power cut takes a part of it, the checksum shows that.

    Raises:
        OSError: the disk is full, or the folder can't be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.safetensors")
        ...     write_array(path, "mask", torch.tensor([0, 1]))
        ...     print(read_array(path, "mask"), read_array(path, "another name"))
        tensor([0, 1]) None
    """
    array = array.contiguous().cpu()
    write_bytes(path, save({_ARRAY: array}, {_CHECKSUM: checksum(name, array)}), sync=False)


def read_array(path: Path, name: str) -> Tensor | None:
    """Read the array that was written under a name; None if it is missing, or not as it was written.

    The array is mapped: it keeps no file open, so a run may have any number of them. Changing it does not change the
    file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.safetensors")
        ...     write_array(path, "mask", torch.tensor([0, 1]))
        ...     _ = path.write_bytes(path.read_bytes()[:-1])  # the last byte is lost
        ...     print(read_array(path, "mask"))
        None
    """
    try:
        with safe_open(path, "pt") as file:
            written, array = (file.metadata() or {}).get(_CHECKSUM), file.get_tensor(_ARRAY)
    except (OSError, SafetensorError):
        return None
    return array if written == checksum(name, array) else None


def checksum(name: str, array: Tensor) -> str:
    """The hash of an array's name, type, shape and content.

    Example:
        >>> ones = torch.ones(2, 3)
        >>> checksum("a", ones) == checksum("a", ones.clone()), checksum("a", ones) == checksum("a", ones.T)
        (True, False)
    """
    digest = hashlib.sha256(f"{name} {array.dtype} {list(array.shape)} ".encode())
    digest.update(array.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
