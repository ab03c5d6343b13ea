"""The image tower on a GPU: images a second, memory and FLOP of the dual path beside `encode_image` and the reference.

`python -m experiments.benchmarks.accelerator [--models ViT-L-14-336@518] [--batches 1 8 64 256] [--compiled 1 64]`.
Random weights and images. `--device cpu` shows that the program works, not how fast a GPU is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from datamodules.errors import UserError
from experiments.benchmarks.image_tower import reference_way
from experiments.benchmarks.timing import print_table, write_results
from src.clip.backbone import Backbone, BackboneSource, find_backbone
from src.environment import compute_in_float32
from src.models.dual_path import DualPath

ENCODE, REFERENCE, DUAL = "open_clip's encode_image", "the reference's way", "dual path"
MODELS = ("ViT-B-16-plus-240@240", "ViT-L-14-336@518")
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
Way = Callable[[Tensor], object]


class Tower(NamedTuple):
    """The ways to run one tower."""

    title: str
    backbone: Backbone
    ways: dict[str, Way]


def source_of(model: str) -> BackboneSource:
    """The type of the option `--models`: a model of open_clip and the side of its images, `NAME@SIZE`."""
    name, _, size = model.partition("@")
    if not size.isdecimal():
        raise argparse.ArgumentTypeError(f"expected NAME@SIZE, such as ViT-L-14-336@518, but got {model}")
    try:
        return find_backbone(name, None, image_size=int(size))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def build_tower(source: BackboneSource, device: str, compiled: bool) -> Tower:
    """The ways to run a tower; the reference's is as its authors run it, never compiled."""
    backbone = Backbone(source, compiled=compiled).to(device)
    layers = backbone.architecture.quarters
    encode: Way = torch.compile(backbone.clip.encode_image) if compiled else backbone.clip.encode_image
    ways: dict[str, Way] = {
        ENCODE: encode,
        REFERENCE: partial(reference_way, backbone),
        DUAL: DualPath(backbone, layers, "reference"),
    }
    if compiled:
        del ways[REFERENCE]
    architecture = backbone.architecture
    return Tower(f"{architecture.name}@{architecture.image_size}", backbone, ways)


def flop(way: Way, images: Tensor) -> int:
    """Of one image: two for each product and sum of a matrix product or an attention."""
    torch.backends.mha.set_fastpath_enabled(False)  # these kernels hold products that the counter does not see
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        way(images[:1])
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


def seconds(way: Way, images: Tensor, precision: str) -> float:
    """The median time of a batch; the clock waits for the device, and the first batches are not counted."""
    dtype = PRECISIONS[precision]
    with torch.autocast(images.device.type, dtype=dtype) if dtype else nullcontext():
        way(images)
        return float(
            Timer("way(images)", globals={"way": way, "images": images}).blocked_autorange(min_run_time=0.3).median
        )


def peak_gb(images: Tensor) -> float | None:
    """The most that was allocated since the last call."""
    if not images.is_cuda:
        return None
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def rows_of(
    tower: Tower, batches: list[int], device: str, state: str, counts: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """A row for each way, precision and batch. `state` is `eager` or `compiled`."""
    size = tower.backbone.architecture.image_size
    for precision in PRECISIONS:
        for batch in batches:
            images = torch.randn(batch, 3, size, size, device=device)
            peak_gb(images)
            speeds: dict[str, float] = {}
            for name, way in tower.ways.items():
                try:
                    taken = seconds(way, images, precision)
                except torch.OutOfMemoryError:
                    peak_gb(images)
                    torch.cuda.empty_cache()
                    continue
                speeds[name] = batch / taken
                allowed = counts[ENCODE] / counts[name]
                yield {
                    "tower": tower.title,
                    "way": name,
                    "state": state,
                    "precision": precision,
                    "batch": batch,
                    "ms a batch": 1e3 * taken,
                    "images / s": speeds[name],
                    "TFLOP / s": counts[name] * speeds[name] / 1e12,
                    "peak (GB)": peak_gb(images),
                    "speed beside encode_image": speeds[name] / speeds[ENCODE],
                    "of what its FLOP allow": speeds[name] / speeds[ENCODE] / allowed,
                }


@torch.no_grad()
def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", type=source_of, default=list(map(source_of, MODELS)), help="NAME@SIZE")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--compiled", type=int, nargs="*", default=[1, 64], help="batches that are also compiled for")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a GPU, but torch finds none; --device cpu shows only that the program works")
    compute_in_float32()
    rows = []
    for source in arguments.models:
        tower = build_tower(source, arguments.device, compiled=False)
        size = tower.backbone.architecture.image_size
        one = torch.randn(1, 3, size, size, device=arguments.device)
        counts = {name: flop(way, one) for name, way in tower.ways.items()}
        rows += list(rows_of(tower, arguments.batches, arguments.device, "eager", counts))
        if arguments.compiled:
            torch._dynamo.config.cache_size_limit = 64  # one entry a batch size and precision
            compiled = build_tower(source, arguments.device, compiled=True)
            rows += list(rows_of(compiled, arguments.compiled, arguments.device, "compiled", counts))
    print_table("image towers", rows)
    settings = {"batches": arguments.batches, "compiled": arguments.compiled, "device": arguments.device}
    write_results("accelerator", {"image towers": rows}, **settings)


if __name__ == "__main__":
    main()
