"""Builds a model for the values in a file: without random ones first, and without a copy of the file in memory."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.serialization import config as torch_files


@contextmanager
def values_from(path: Path | None) -> Iterator[None]:
    """Make building and loading a model fast within the block.

    ViT-B-16-plus-240 takes 0.6 s instead of 3.4, see experiments/benchmarks.

    Args:
        path: the file from which all of the model's values will come. None is for random values, and changes nothing.

    Example:
        >>> import torch
        >>> with values_from(Path("clip.safetensors")):
        ...     layer = torch.nn.Linear(4, 2)  # its values are what the memory held: load all of them next
    """
    if path is None:
        yield
        return
    before = torch_files.load.mmap
    torch_files.load.mmap = zipfile.is_zipfile(path)  # torch's older format can't be mapped; safetensors maps its own
    try:
        with _NoInitialValues():
            yield
    finally:
        torch_files.load.mmap = before


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Have a module or class another attribute within the block.

    Example:
        >>> import math
        >>> with replaced(math, "pi", 3):
        ...     math.pi
        3
    """
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def without(module: str) -> Iterator[None]:
    """Make an optional module look as if it were not installed, unless it is imported already.

    Example:
        >>> with without("turtle"):
        ...     import turtle
        Traceback (most recent call last):
          ...
        ModuleNotFoundError: import of turtle halted; None in sys.modules
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


class _NoInitialValues(TorchFunctionMode):
    """Leaves new parameters as the memory was."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        named = dict(kwargs or {})
        if getattr(func, "__module__", None) == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else named["tensor"]
        return func(*args, **named)
