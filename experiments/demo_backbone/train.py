"""Train the demo backbone: `python -m experiments.demo_backbone.train`."""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import nn

from datamodules.demo.protocol import DEFECTS, TRAINING_SEED
from experiments.demo_backbone.batches import Batch, Batches
from experiments.demo_backbone.captions import Captions
from experiments.demo_backbone.codes import NARROW, WIDE, embed_all, side_codes, train_text
from experiments.demo_backbone.objective import Losses, Objective
from experiments.demo_backbone.pool import load_pool
from experiments.demo_backbone.start import start_image_tower
from experiments.demo_backbone.towers import (
    ARCHITECTURE_FILE,
    build_clip,
    closeup_levels,
    dual_path_levels,
    embed_window,
)

VOCABULARY, WEIGHTS_NAME = 49408, "demo_clip.safetensors"
SENTENCES = 3
# Close-ups are cheap: (side in pixels, pairs in a batch), about the same work each.
WINDOWS = ((96, 4), (64, 8), (48, 12), (32, 16))
PEAK_RATE, WARMUP, AVERAGING = 2e-3, 100, 0.998
CLOSEUP = 32
# The offsets of the evidence have far to go and can move fast.
OFFSET_RATE = 10


def window_shares(progress: float) -> list[float]:
    """How often each of WINDOWS is drawn: close-ups teach what a defect looks like, then whole images come in."""
    return [0.05, 0.15, 0.15, 0.65] if progress < 0.4 else [0.3, 0.2, 0.1, 0.4]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return PEAK_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def draw_sentences(embedded: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """SENTENCES random embeddings of each side: 2 C tensors (K, D) -> (2 C, SENTENCES, D)."""
    return torch.stack([rows[torch.randint(len(rows), (SENTENCES,), generator=generator)] for rows in embedded])


def losses_of(clip: CLIP, objective: Objective, batch: Batch, sentences: torch.Tensor) -> Losses:
    """Run the image tower on a batch and compare it with sentences (2 C, SENTENCES, D)."""
    levels = dual_path_levels(clip, embed_window(clip, batch.images, batch.corner))
    scale = clip.logit_scale.exp()
    side = batch.images.shape[-1]
    closeups = (
        closeup_levels(clip, batch.images, batch.corner, side // CLOSEUP)
        if side in (2 * CLOSEUP, 3 * CLOSEUP)
        else None
    )
    return objective(levels, sentences, scale, batch.category, batch.label, batch.known, closeups)


def export(clip: CLIP, captions: Captions, path: Path) -> None:
    """Write the weights in half precision, under open_clip's names and with its whole vocabulary."""
    state = {name: value.detach().clone() for name, value in clip.state_dict().items()}
    state["token_embedding.weight"] = captions.full_table(state["token_embedding.weight"], VOCABULARY)
    state.pop("attn_mask", None)
    half = {name: value.half().contiguous() for name, value in state.items()}
    unfinished = path.with_suffix(".unfinished")
    save_file(half, unfinished)
    unfinished.replace(path)


def optimizer_of(clip: CLIP, objective: Objective) -> torch.optim.AdamW:
    """AdamW; matrices decay, while norms, biases and offsets do not. `share` is a group's part of the learning rate."""
    trained = [p for p in (*clip.parameters(), *objective.readout.parameters()) if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.05, "share": 1},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "share": 1},
        {"params": [objective.offset], "weight_decay": 0.0, "share": OFFSET_RATE},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))


def train(arguments: argparse.Namespace) -> None:
    """The whole of it. Log lines go to `train.log` beside the weights; a killed run goes on from its last 500 steps."""
    torch.manual_seed(TRAINING_SEED)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = (arguments.out / "train.log").open("a", buffering=1)

    def say(line: str) -> None:
        print(line, flush=True)
        log.write(line + "\n")

    started = time.time()
    captions = Captions(list(DEFECTS))
    clip = build_clip(len(captions.used))
    width, embed_dim = clip.visual.proj.shape
    objective = Objective(4, width, embed_dim)
    pool = load_pool(arguments.pool, arguments.pairs, clip.visual.image_size[0], arguments.threads)
    start_image_tower(clip, pool, TRAINING_SEED)
    batches = Batches(pool, clip.visual.patch_size[0], TRAINING_SEED)
    say(f"{len(pool.category)} pairs after {time.time() - started:.0f} s; {len(captions.used)} tokens; {arguments}")
    generator = torch.Generator().manual_seed(TRAINING_SEED)
    codes = side_codes(len(DEFECTS), embed_dim, WIDE, TRAINING_SEED)
    say(f"text tower's distance from its codes {train_text(clip, captions, codes, generator):.4f}")
    embedded = embed_all(clip, captions)
    optimizer = optimizer_of(clip, objective)
    state_file, first = arguments.pool / "demo_backbone_state.pt", 0
    average = copy.deepcopy(clip)
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        clip.load_state_dict(state["clip"])
        objective.load_state_dict(state["objective"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        batches.rng = state["rng"]
        generator.set_state(state["generator"])
        say(f"resumed at step {first}")
    mean = torch.zeros(len(Losses._fields))
    for step in range(first, arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps) * group["share"]
        share = torch.tensor(window_shares(step / arguments.steps))
        side, pairs = WINDOWS[int(torch.multinomial(share, 1, generator=generator))]
        losses = losses_of(clip, objective, batches.draw(pairs, side), draw_sentences(embedded, generator))
        optimizer.zero_grad(set_to_none=True)
        losses.total().backward()
        nn.utils.clip_grad_norm_([*clip.parameters(), *objective.parameters()], 1.0)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(math.log(14), math.log(100))
            decay = min(AVERAGING, (step + 1) / (step + 10))
            for kept, new in zip(average.parameters(), clip.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
            mean += torch.stack(losses).detach() / 100
        if (step + 1) % 100 == 0:
            parts = " ".join(f"{n} {v:.3f}" for n, v in zip(Losses._fields, mean.tolist(), strict=True))
            say(f"step {step + 1} {time.time() - started:.0f} s  {parts}  scale {clip.logit_scale.exp():.1f}")
            mean.zero_()
        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            state = {"clip": clip.state_dict(), "objective": objective.state_dict(), "average": average.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": step + 1, "rng": batches.rng}
            torch.save(state | {"generator": generator.get_state()}, state_file)
    narrow = side_codes(len(DEFECTS), embed_dim, NARROW, TRAINING_SEED)
    say(f"sides narrowed, distance {train_text(average, captions, narrow, generator):.4f}")
    export(average, captions, arguments.out / WEIGHTS_NAME)


def main() -> None:
    """Read the command line."""
    here = ARCHITECTURE_FILE.parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=here, help="weights and log")
    parser.add_argument("--pool", type=Path, default=Path("data"), help="drawn images, and the state to resume from")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs of images per category")
    parser.add_argument("--steps", type=int, default=15000)
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
