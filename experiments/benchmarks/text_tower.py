"""The text side of a run: `python -m experiments.benchmarks.text_tower [--rounds 5] [--threads 2] [--skip-bf16]`.

The plain way, and the reference's, is open_clip's `encode_text` at all 77 positions, one class after the other.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks.timing import paired_medians, print_table, set_threads, write_results
from experiments.demo_backbone.captions import project_prompts
from src.clip.backbone import Backbone, BackboneSource, describe_text_tower, find_backbone
from src.clip.sentence_cache import SentenceCache
from src.clip.text_tower import encode_tokens
from src.models.representative import REPRESENTATIVES
from src.models.text import PromptEnsemble

NAME = "ViT-B-16-plus-240"  # weights don't change the time: random ones
CLASSES = (
    *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
    *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
)
PLAIN = "encode_text at 77 positions, fp32"
PLAIN_BATCH = 256


def plain(backbone: Backbone, sentences: list[str]) -> Tensor:
    """open_clip's own way: K sentences -> (K, D), unit length."""
    tokens = backbone.tokenizer(sentences)
    parts = [backbone.clip.encode_text(batch) for batch in tokens.split(PLAIN_BATCH)]
    return F.normalize(torch.cat(parts).float(), dim=-1)


def cut(backbone: Backbone, sentences: list[str]) -> Tensor:
    """This project's way: K sentences -> (K, D), unit length."""
    return F.normalize(encode_tokens(backbone.clip, backbone.tokenizer(sentences)).float(), dim=-1)


def cut_in_bfloat16(backbone: Backbone, sentences: list[str]) -> Tensor:
    """The same under autocast. Runs don't do this: what is computed once can be exact."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return cut(backbone, sentences)


def rows_cold(backbone: Backbone, rounds: int, *, with_bfloat16: bool) -> list[dict[str, Any]]:
    """One class, nothing known before."""
    sides = project_prompts().sentences("metal_nut")
    sentences = [*sides.normal, *sides.anomalous]
    ways = {PLAIN: partial(plain, backbone, sentences), "cut at the longest, fp32": partial(cut, backbone, sentences)}
    if with_bfloat16:
        ways["cut at the longest, bf16"] = partial(cut_in_bfloat16, backbone, sentences)
    expected = plain(backbone, sentences)
    differences = {name: float((run() - expected).abs().max()) for name, run in ways.items()}
    seconds = paired_medians(ways, rounds)
    return [
        {
            "way": name,
            "seconds": taken,
            "times faster": seconds[PLAIN] / taken,
            "largest difference": differences[name],
        }
        for name, taken in seconds.items()
    ]


def rows_warm(source: BackboneSource, rounds: int) -> list[dict[str, Any]]:
    """All VisA classes from the cache, representative vectors included."""
    with TemporaryDirectory() as folder:
        backbone = Backbone(source, SentenceCache(Path(folder), describe_text_tower(source, "random")))
        text = {method: PromptEnsemble(backbone, project_prompts(), method) for method in REPRESENTATIVES}
        for method in REPRESENTATIVES:
            text[method].prepare(CLASSES, "visa")
        seconds = paired_medians({m: partial(text[m].prepare, CLASSES, "visa") for m in text}, rounds)
    return [{"representative": method, "seconds": taken} for method, taken in seconds.items()]


@torch.no_grad()
def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-bf16", action="store_true", help="leave it out: slow where the processor has none")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    source = find_backbone(NAME, None)
    tables = {
        f"One class, 418 sentences, cold; {NAME}, random weights": rows_cold(
            Backbone(source), arguments.rounds, with_bfloat16=not arguments.skip_bf16
        ),
        f"{len(CLASSES)} VisA classes from the cache": rows_warm(source, arguments.rounds),
    }
    for title, rows in tables.items():
        print_table(title, rows)
    settings = {"instructions": torch.backends.cpu.get_cpu_capability(), **vars(arguments)}
    write_results("text_tower", tables, **settings)


if __name__ == "__main__":
    main()
