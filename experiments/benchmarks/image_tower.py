"""The image tower with its second path, against open_clip's own `encode_image` and the reference's way.

`python -m experiments.benchmarks.image_tower [--rounds 5] [--threads 2] [--batch 8] [--skip-bf16] [--compile]`.
B images, P patches, W width, H heads, E = W / H.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks.timing import paired_medians, print_table, set_threads, write_results
from experiments.demo_backbone.captions import project_prompts
from src.clip.backbone import Backbone, find_backbone
from src.models.dual_path import DualPath
from src.models.maps import gaussian_blur
from src.models.sdp import SDP
from src.models.sdp_plus import SDPPlus

NAME = "ViT-B-16-plus-240"  # weights don't change the time: random ones
LAYERS = (3, 6, 9, 12)
SIGMA = 8.0
ENCODE = "open_clip's encode_image"


def reference_way(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """As the authors' code computes it: two attentions written out, both paths whole in every block and level."""
    tokens = backbone.embed(images)  # (B, 1+P, W)
    second = torch.zeros_like(tokens)
    levels = []
    ends = backbone.architecture.quarters
    starts = [0, *ends[:-1]]
    for number, block in enumerate(backbone.blocks, start=1):
        residual, values = written_out_attention(block, tokens)
        second = values if number - 1 in starts else second + values
        tokens = tokens + residual
        tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        if number in ends:
            levels.append((tokens, torch.cat([tokens[:, :1], second[:, 1:]], dim=1)))
    return [backbone.project(both) for _, both in levels]


def written_out_attention(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of query with key, and of value with value, each times value and projected: two of (B, 1+P, W)."""
    attention = block.attn
    batch, length, width = tokens.shape
    projected = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    heads = projected.reshape(batch, length, 3, attention.num_heads, -1)
    query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, H, 1+P, E)
    residuals = []
    for q, k in ((query, key), (value, value)):
        shares = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, H, 1+P, 1+P)
        residuals.append(attention.out_proj((shares @ value).transpose(1, 2).reshape(batch, length, width)))
    return residuals[0], residuals[1]


def matrix_products(backbone: Backbone, batch: int) -> Callable[[], None]:
    """The plain tower's matrix products alone, with its attention left out: what no other way can undercut."""
    architecture = backbone.architecture
    width, rows = architecture.width, batch * (architecture.grid_size**2 + 1)
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    pairs = [(torch.randn(rows, inner), torch.randn(outer, inner)) for inner, outer in shapes]

    def run() -> None:
        for _ in range(architecture.depth):
            for left, right in pairs:
                F.linear(left, right)

    return run


def rows_behind_the_tower(backbone: Backbone, images: Tensor, rounds: int) -> list[dict[str, Any]]:
    """What an evaluation does with the tokens, as a share of the time of the tower that gives them."""
    size, embed_dim = images.shape[-1], backbone.architecture.embed_dim
    text = F.normalize(torch.randn(len(images), embed_dim, 2), dim=1)
    maps = torch.randn(len(images), size, size)
    rows = []
    for model in (SDP, SDPPlus):
        method = model(backbone, project_prompts(), LAYERS, "reference", SIGMA, "mean")
        features = method.features(images)
        ways: dict[str, Callable[[], object]] = {
            "tower": partial(method.features, images),
            "similarities, upsampling, smoothing": partial(method.score, features, text),
            "smoothing alone": partial(gaussian_blur, maps, SIGMA),
        }
        seconds = paired_medians(ways, rounds)
        rows += [
            {
                "part": f"{method.name}: {name}",
                "s / image": taken / len(images),
                "of the tower": taken / seconds["tower"],
            }
            for name, taken in seconds.items()
        ]
    return rows


def under_bfloat16(run: Callable[[], object]) -> object:
    """Run with bfloat16 autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return run()


@torch.no_grad()
def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--skip-bf16", action="store_true", help="leave it out: slow where the processor has none")
    parser.add_argument("--compile", action="store_true", help="torch.compile takes part")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    source = find_backbone(NAME, None)
    backbone = Backbone(source)
    size = backbone.architecture.image_size
    images = torch.randn(arguments.batch, 3, size, size)
    exact: dict[str, Callable[[], object]] = {
        ENCODE: partial(backbone.clip.encode_image, images),
        "the reference's way": partial(reference_way, backbone, images),
        "dual path": partial(DualPath(backbone, LAYERS, "reference"), images),
        "matrix products alone": matrix_products(backbone, arguments.batch),
    }
    if arguments.compile:
        compiled = Backbone(source, compiled=True)
        exact["dual path, compiled"] = partial(DualPath(compiled, LAYERS, "reference"), images)
    ways = {f"{name}, fp32": run for name, run in exact.items()}
    if not arguments.skip_bf16:
        ways |= {f"{name}, bf16": partial(under_bfloat16, run) for name, run in exact.items()}
    paired_medians(ways, 1)  # the first of each is not like the others
    seconds = paired_medians(ways, arguments.rounds)
    rows = [
        {
            "way": name,
            "s / image": taken / arguments.batch,
            "times encode_image, same precision": taken / seconds[f"{ENCODE}, {name[-4:]}"],
            "times faster than itself in fp32": seconds[f"{name[:-4]}fp32"] / taken,
        }
        for name, taken in seconds.items()
    ]
    title = f"{NAME}, batch of {arguments.batch}, {arguments.threads} threads, random weights"
    behind = rows_behind_the_tower(backbone, images, arguments.rounds)
    print_table(title, rows)
    print_table("Behind the tower, fp32", behind)
    settings = {"instructions": torch.backends.cpu.get_cpu_capability(), **vars(arguments)}
    write_results("image_tower", {title: rows, "Behind the tower, fp32": behind}, **settings)


if __name__ == "__main__":
    main()
