"""The state of the metrics in a file, and the metrics of several such files: what shards of one evaluation leave.

Merged, the files give what one run over all images gives, to the last bit: sums of integers and sorted scores don't
depend on the order in which they came.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datamodules.errors import UserError
from src.metrics.base import joined
from src.metrics.benchmark_metrics import BenchmarkMetrics

STATES = {
    "image": ("cls_score", "map_max", "label"),
    "pixel": ("anomalous_scores", "anomalous_areas", "normal_scores", "histogram"),
}


def write_state(metrics: BenchmarkMetrics, path: Path) -> None:
    """Write the scores of all categories to a safetensors file, whole or not at all: 4 bytes a pixel.

    Raises:
        ValueError: if a category was already finished, and its scores are gone.
    """
    if metrics.finished:
        raise ValueError(f"Expected argument `metrics` to hold all scores, but {list(metrics.finished)} are finished.")
    tensors: dict[str, Tensor] = {}
    for index, name in enumerate(metrics.categories):
        for level, metric in zip(STATES, metrics.metrics_of(name), strict=True):
            for state in STATES[level]:
                if parts := getattr(metric, state):
                    tensors[f"{index}.{level}.{state}"] = joined(parts)
    content = {
        "categories": metrics.categories,
        "memory_gb": metrics.memory_gb,
        "num_images": metrics.num_images,
        "vanished_masks": metrics.vanished_masks,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(tensors, temporary, {"state": json.dumps(content)})
    temporary.replace(path)


def merge_states(paths: Sequence[Path]) -> BenchmarkMetrics:
    """Evaluate the images of all files, in any order of the files, category after category.

    Returns:
        Finished metrics: `compute` gives the result, further images are refused.

    Raises:
        UserError: a file can't be read, or the files are not of the same categories and memory.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(path)) for path in paths]
        contents = [_content_of(file, path) for file, path in zip(files, paths, strict=True)]
        for key in ("categories", "memory_gb"):
            for content, path in zip(contents, paths, strict=True):
                if content[key] != contents[0][key]:
                    raise UserError(
                        f"expected {path} to have the {key} of {paths[0]}, {contents[0][key]}, but got {content[key]}; "
                        "merge shards of one run only"
                    )
        metrics = BenchmarkMetrics(contents[0]["categories"], memory_gb=contents[0]["memory_gb"])
        for index, name in enumerate(metrics.categories):
            for file, content in zip(files, contents, strict=True):
                _add(metrics, name, index, file, content)
            metrics.finish(name)
    return metrics


def _add(metrics: BenchmarkMetrics, name: str, index: int, file: Any, content: dict[str, Any]) -> None:
    """Add one file's part of a category."""
    keys = set(file.keys())
    for level, metric in zip(STATES, metrics.metrics_of(name), strict=True):
        for state in STATES[level]:
            key = f"{index}.{level}.{state}"
            if key in keys:
                getattr(metric, state).append(file.get_tensor(key))
    metrics.metrics_of(name)[1].limit_memory()
    metrics.num_images[name] += content["num_images"][name]
    if name in content["vanished_masks"]:
        metrics.vanished_masks[name] = metrics.vanished_masks.get(name, 0) + content["vanished_masks"][name]


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"expected the state of a shard's metrics in {path}, but got: {error}; run it again") from error


def _content_of(file: Any, path: Path) -> dict[str, Any]:
    metadata = file.metadata() or {}
    if "state" not in metadata:
        raise UserError(f"expected the state of a shard's metrics in {path}, but it holds other tensors")
    content: dict[str, Any] = json.loads(metadata["state"])
    return content
