"""The state of the metrics in a file, and the metrics of several such files: what shards of one evaluation leave.

Merged, the files give what one run over all images gives, to the last bit: sums of integers and sorted scores don't
depend on the order in which they came.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from datamodules.errors import UserError, reason_of
from src.files import damaged, parsed, replacing
from src.metrics.base import joined
from src.metrics.benchmark_metrics import BenchmarkMetrics
from src.metrics.functional import check_fusion
from src.metrics.functional.histogram import empty_histogram

STATES = {
    "image": ("scores", "label"),
    "pixel": ("anomalous_scores", "anomalous_areas", "normal_scores", "histogram"),
}
_HEADER = "state"


class Counted(TypedDict):
    """How much of a category a file holds."""

    images: int
    labels: int
    pixels: int


class StateHeader(TypedDict):
    """What a file says about its tensors; `counts` of each category, in the order of `categories`.

    `terms` are the columns of the image scores, but for the last, and `fusion` is the rule that fuses them.
    """

    categories: list[str]
    terms: list[str]
    fusion: str
    memory_gb: float | None
    thresholds: dict[str, float]
    counts: dict[str, Counted]
    vanished_masks: dict[str, int]
    empty_masks: dict[str, int]


def write_state(metrics: BenchmarkMetrics, path: Path) -> None:
    """Write the scores of all categories to a safetensors file, whole or not at all: 4 bytes a pixel.

    Raises:
        ValueError: if a category was already finished, and its scores are gone; or there are metrics of the user's own,
            whose states can't be joined.
        OSError: the disk is full.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> metrics = BenchmarkMetrics(["cup"], ["map_max"], "single")
        >>> scores = torch.tensor([0.2, 0.9])
        >>> metrics.update(["cup", "cup"], {"map_max": scores}, scores, torch.tensor([0, 1]))
        >>> with TemporaryDirectory() as folder:
        ...     write_state(metrics, Path(folder, "state.safetensors"))
        ...     print(read_header(Path(folder, "state.safetensors"))["counts"])
        {'cup': {'images': 2, 'labels': 2, 'pixels': 0}}
    """
    if metrics.finished:
        raise ValueError(f"Expected argument `metrics` to hold all scores, but {list(metrics.finished)} are finished.")
    if metrics.own:
        raise ValueError(f"Expected argument `metrics` to have none of the user's own, but got {list(metrics.own)}.")
    tensors: dict[str, Tensor] = {}
    counts: dict[str, Counted] = {}
    for index, name in enumerate(metrics.categories):
        own: dict[str, Tensor] = {}
        for level, metric in zip(STATES, metrics.metrics_of(name), strict=True):
            own |= {state: joined(parts) for state in STATES[level] if (parts := getattr(metric, state))}
        counts[name] = _counted(own, metrics.num_images[name])
        tensors |= {f"{index}.{state}": tensor for state, tensor in own.items()}
    header: StateHeader = {
        "categories": list(metrics.categories),
        "terms": list(metrics.terms),
        "fusion": metrics.fusion,
        "memory_gb": metrics.memory_gb,
        "thresholds": metrics.thresholds,
        "counts": counts,
        "vanished_masks": metrics.vanished_masks,
        "empty_masks": metrics.empty_masks,
    }
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {_HEADER: json.dumps(header)})  # without a copy of them all in memory
        except SafetensorError as error:  # what safetensors says of a full disk, without its name
            raise OSError(errno.EIO, reason_of(error)) from error


def read_header(path: Path) -> StateHeader:
    """Read what a file says about its tensors.

    Raises:
        UserError: it can't be read, or is not what the project writes.
    """
    with _opened(path) as file:
        return _header_of(file, path)


def merge_states(paths: Sequence[Path]) -> BenchmarkMetrics:
    """Evaluate the images of all files, in any order of the files, category after category.

    Returns:
        Finished metrics: `compute` gives the result, further images are refused.

    Raises:
        UserError: a file can't be read, holds other tensors than its header says, or the files are not of the same
            categories, terms, fusion and memory.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     paths = [Path(folder, "normal.safetensors"), Path(folder, "anomalous.safetensors")]
        ...     for label, path in enumerate(paths):
        ...         metrics = BenchmarkMetrics(["cup"], ["map_max"], "single")
        ...         scores = torch.tensor([0.5 * label])
        ...         metrics.update(["cup"], {"map_max": scores}, scores, torch.tensor([label]))
        ...         write_state(metrics, path)
        ...     print(merge_states(paths).compute()["mean"]["image_AUROC"])
        1.0
    """
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(path)) for path in paths]
        headers = [_header_of(file, path) for file, path in zip(files, paths, strict=True)]
        first = headers[0]
        for header, path in zip(headers, paths, strict=True):
            for key in ("categories", "terms", "fusion", "memory_gb", "thresholds"):
                own, others = header[key], first[key]
                if own != others:
                    raise UserError(
                        f"expected {path} to have the {key} of {paths[0]}, {others}, but got {own}; "
                        "merge shards of one run only"
                    )
        metrics = BenchmarkMetrics(
            first["categories"], first["terms"], first["fusion"], first["memory_gb"], thresholds=first["thresholds"]
        )
        for index, name in enumerate(metrics.categories):
            for file, header, path in zip(files, headers, paths, strict=True):
                _add(metrics, name, _tensors_of(file, index, header, path), header)
            metrics.finish(name)
    return metrics


def _add(metrics: BenchmarkMetrics, name: str, tensors: Mapping[str, Tensor], header: StateHeader) -> None:
    """Add one file's part of a category."""
    for level, metric in zip(STATES, metrics.metrics_of(name), strict=True):
        for state in STATES[level]:
            if state in tensors:
                getattr(metric, state).append(tensors[state])
    metrics.metrics_of(name)[1].limit_memory()
    metrics.num_images[name] += header["counts"][name]["images"]
    for own, more in ((metrics.vanished_masks, header["vanished_masks"]), (metrics.empty_masks, header["empty_masks"])):
        if name in more:
            own[name] = own.get(name, 0) + more[name]


def _tensors_of(file: Any, index: int, header: StateHeader, path: Path) -> dict[str, Tensor]:
    """A category's tensors, checked: numbers that are none, or too few of them, would give metrics all the same.

    Raises:
        UserError: they are not what the header says.
    """
    counts, columns = header["counts"][header["categories"][index]], len(header["terms"]) + 1
    names = [state for states in STATES.values() for state in states]
    try:
        keys = set(file.keys())
        tensors: dict[str, Tensor] = {n: file.get_tensor(f"{index}.{n}") for n in names if f"{index}.{n}" in keys}
    except Exception as error:  # safetensors' own, and torch's for a type that it does not know
        raise damaged(path, reason_of(error)) from error
    wrong = [name for name, tensor in tensors.items() if not _is_valid(name, tensor, columns)]
    if wrong:
        raise damaged(path, f"{', '.join(f'{index}.{name}' for name in wrong)} can't be the state of metrics")
    sizes = {name: len(tensors.get(name, ())) for name in names}
    is_even = len({sizes[name] for name in STATES["image"]}) == 1 and (
        sizes["anomalous_scores"] == sizes["anomalous_areas"]
    )
    if not is_even or _counted(tensors, counts["images"]) != counts:
        raise damaged(path, f"category {index} has not the scores that its header counts ({counts})")
    return tensors


def _is_valid(name: str, tensor: Tensor, columns: int) -> bool:
    """Whether a tensor can be a state: shape, kind and range; image scores have a number of columns."""
    if name == "histogram":
        empty = empty_histogram()
        return tensor.shape == empty.shape and tensor.dtype is empty.dtype and bool((tensor >= 0).all())
    if tensor.shape[1:] != ((columns,) if name == "scores" else ()) or tensor.ndim == 0 or tensor.is_complex():
        return False
    if name == "label":
        return bool(((tensor == 0) | (tensor == 1)).all())
    if name == "anomalous_areas":
        return tensor.dtype is torch.int32 and bool((tensor > 0).all())
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def _counted(tensors: Mapping[str, Tensor], images: int) -> Counted:
    pixels = sum(len(tensors[name]) for name in ("anomalous_scores", "normal_scores") if name in tensors)
    if "histogram" in tensors:
        pixels += int(tensors["histogram"][:2].sum())
    return {"images": images, "labels": len(tensors.get("label", ())), "pixels": pixels}


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except FileNotFoundError as error:
        raise UserError(
            f"expected the state of a shard's metrics in {path}, but there is none; run it again"
        ) from error
    except (OSError, SafetensorError) as error:
        raise damaged(path, reason_of(error)) from error


def _header_of(file: Any, path: Path) -> StateHeader:
    metadata = file.metadata() or {}
    if _HEADER not in metadata:
        raise UserError(f"expected the state of a shard's metrics in {path}, but it holds other tensors")
    header = parsed(metadata[_HEADER], StateHeader, path)
    names = header["categories"]
    if (
        list(header["counts"]) != names
        or not {*header["vanished_masks"], *header["empty_masks"]} <= header["counts"].keys()
    ):
        raise damaged(path, "its header does not count each category once")
    try:
        check_fusion(header["terms"], header["fusion"])
    except ValueError as error:
        raise damaged(path, reason_of(error)) from error
    return header
