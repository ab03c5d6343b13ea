"""The text side of a run: `python -m experiments.benchmarks.text_tower`.

The plain way, and the reference's, is open_clip's `encode_text` at all 77 positions, one class after the other.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks.timing import alternate, report
from experiments.demo_backbone.captions import project_prompts
from src.models.backbone import Backbone, BackboneSource, describe_text_tower, find_backbone
from src.models.sentence_cache import SentenceCache
from src.models.text import PromptEnsemble
from src.models.text_tower import encode_tokens

NAME = "ViT-B-16-plus-240"  # weights don't change the time: random ones
CLASSES = (
    *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
    *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
)
DBSCAN = {"eps": 1.5, "min_samples": 25}  # VisA's
PLAIN_BATCH = 256


def plain(backbone: Backbone, sentences: list[str]) -> Tensor:
    """open_clip's own way: K sentences -> (K, D), unit length."""
    tokens = backbone.tokenizer(sentences)
    parts = [backbone.clip.encode_text(batch) for batch in tokens.split(PLAIN_BATCH)]
    return F.normalize(torch.cat(parts).float(), dim=-1)


def shared(backbone: Backbone, sentences: list[str]) -> Tensor:
    """This project's way: K sentences -> (K, D), unit length."""
    return F.normalize(encode_tokens(backbone.clip, backbone.tokenizer(sentences)).float(), dim=-1)


def shared_in_bfloat16(backbone: Backbone, sentences: list[str]) -> Tensor:
    """The same under autocast. Runs don't do this: what is computed once can be exact."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return shared(backbone, sentences)


@torch.no_grad()
def main() -> None:
    """Time one class cold, and all VisA classes warm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    source = find_backbone(NAME, None)
    backbone = Backbone(source)
    sides = project_prompts().sentences("metal_nut")
    sentences = [*sides.normal, *sides.anomalous]
    ways = {
        "encode_text, fp32": partial(plain, backbone, sentences),
        "prefixes once, fp32": partial(shared, backbone, sentences),
        "prefixes once, bf16": partial(shared_in_bfloat16, backbone, sentences),
    }
    seconds = alternate(ways, rounds)
    expected = plain(backbone, sentences)
    rows = [
        {
            "418 sentences, cold": name,
            "seconds": seconds[name],
            "times faster": seconds["encode_text, fp32"] / seconds[name],
            "largest difference": float((run() - expected).abs().max()),
        }
        for name, run in ways.items()
    ]
    report("text_tower", f"Text tower of {NAME}, random weights", rows, rounds=rounds)
    time_warm(source, rounds)


def time_warm(source: BackboneSource, rounds: int) -> None:
    """All VisA classes from the cache, representative vectors included."""
    with TemporaryDirectory() as folder:
        cache = SentenceCache(Path(folder), describe_text_tower(source, "random"))
        backbone = Backbone(source, cache)
        text = {method: PromptEnsemble(backbone, project_prompts(), method) for method in ("dbscan", "mean")}
        text["mean"].prepare(CLASSES, DBSCAN)
        seconds = alternate({m: partial(text[m].prepare, CLASSES, DBSCAN) for m in text}, rounds)
    rows = [{"12 VisA classes, warm": f"representative={m}", "seconds": s} for m, s in seconds.items()]
    report("text_cache", f"Text features of {NAME} from the cache", rows, rounds=rounds)


if __name__ == "__main__":
    main()
