"""Train the demo backbone: `python -m experiments.demo_backbone.train`."""

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import nn

from datamodules.demo.settings import DEFECTS, TRAINING_SEED
from experiments.demo_backbone.batches import Batch, Batches
from experiments.demo_backbone.captions import Captions
from experiments.demo_backbone.codes import NARROW, WIDE, embed_all, side_codes, train_text
from experiments.demo_backbone.muon import Muon
from experiments.demo_backbone.objective import Losses, Objective
from experiments.demo_backbone.pool import Pool, load_pool
from experiments.demo_backbone.start import start_image_tower
from experiments.demo_backbone.towers import ARCHITECTURE_FILE, build_clip, embed_cls, embed_window, level_tokens
from src.clip.architecture import STAGES

VOCABULARY, WEIGHTS_NAME = 49408, "demo_clip.safetensors"
SENTENCES = 3
# Close-ups are cheap: (side in pixels, pairs in a batch), about the same work each.
WINDOWS = ((96, 8), (64, 16), (48, 24), (32, 32))
# How often each is drawn: close-ups teach what damage looks like, then whole images come in.
EARLY_SHARES, LATE_SHARES, EARLY = (0.05, 0.1, 0.15, 0.7), (0.4, 0.2, 0.1, 0.3), 0.5
PEAK_RATE, WARMUP, AVERAGING, DECAY = 2e-3, 100, 0.998, 0.05
# The offsets of the evidence have far to go and can move fast.
OFFSET_RATE = 10
REPORT, SAVE = 100, 500
COLDEST, HOTTEST = math.log(14), math.log(100)


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
    levels = level_tokens(clip, embed_window(clip, batch.images, batch.corner))
    cls_token = embed_cls(clip, levels[-1])
    return objective(levels, cls_token, sentences, clip.logit_scale.exp(), batch.category, batch.damage)


def export(clip: CLIP, captions: Captions, path: Path) -> None:
    """Write the weights in half precision, under open_clip's names and with its whole vocabulary."""
    state = {name: value.detach().clone() for name, value in clip.state_dict().items()}
    state["token_embedding.weight"] = captions.full_table(state["token_embedding.weight"], VOCABULARY)
    state.pop("attn_mask", None)
    half = {name: value.half().contiguous() for name, value in state.items()}
    unfinished = path.with_suffix(".unfinished")
    save_file(half, unfinished)
    unfinished.replace(path)


def optimizers_of(clip: CLIP, objective: Objective) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest; norms, biases and offsets do not decay.

    A group's `share` is its part of the learning rate.
    """
    inner = [p for p in clip.visual.transformer.parameters() if p.ndim == 2]
    taken = {id(p) for p in inner}
    others = [p for p in (*clip.parameters(), *objective.readouts.parameters()) if p.requires_grad]
    offsets = [p for name, p in objective.named_parameters() if name.endswith("offset")]
    groups = [
        {"params": [p for p in others if p.ndim >= 2 and id(p) not in taken], "weight_decay": DECAY, "share": 1},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0, "share": 1},
        {"params": offsets, "weight_decay": 0.0, "share": OFFSET_RATE},
    ]
    return [
        Muon([{"params": inner, "share": 1}], weight_decay=DECAY),
        torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98)),
    ]


@dataclass
class Training:
    """Everything that moves while the image tower learns; `state` and `load` make a killed run go on where it was."""

    clip: CLIP
    objective: Objective
    average: CLIP
    optimizers: list[torch.optim.Optimizer]
    batches: Batches
    embedded: list[torch.Tensor]
    generator: torch.Generator
    step: int = 0

    def update(self, steps: int) -> torch.Tensor:
        """Make one step of `steps`; returns its losses (3,)."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step, steps) * group["share"]
            optimizer.zero_grad(set_to_none=True)
        shares = torch.tensor(EARLY_SHARES if self.step < EARLY * steps else LATE_SHARES)
        side, pairs = WINDOWS[int(torch.multinomial(shares, 1, generator=self.generator))]
        sentences = draw_sentences(self.embedded, self.generator)
        losses = losses_of(self.clip, self.objective, self.batches.draw(pairs, side), sentences)
        losses.total().backward()
        nn.utils.clip_grad_norm_([*self.clip.parameters(), *self.objective.parameters()], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self._follow()
        self.step += 1
        return torch.stack(losses).detach()

    @torch.no_grad()
    def _follow(self) -> None:
        """Keep the temperature in bounds, and the average of the weights up to date."""
        self.clip.logit_scale.clamp_(COLDEST, HOTTEST)
        decay = min(AVERAGING, (self.step + 1) / (self.step + 10))
        for kept, new in zip(self.average.parameters(), self.clip.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)

    def state(self) -> dict[str, Any]:
        """What `load` needs."""
        modules = {name: getattr(self, name).state_dict() for name in ("clip", "objective", "average")}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        rest = {"rng": self.batches.rng, "generator": self.generator.get_state(), "step": self.step}
        return {**modules, "optimizers": optimizers, **rest}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        for name in ("clip", "objective", "average"):
            getattr(self, name).load_state_dict(state[name])
        for optimizer, one in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(one)
        self.batches.rng, self.step = state["rng"], state["step"]
        self.generator.set_state(state["generator"])


def prepare(captions: Captions, pool: Pool, say: Callable[[str], None]) -> Training:
    """Build the towers, train the text tower, and lock it."""
    clip = build_clip(len(captions.used))
    width, embed_dim = clip.visual.proj.shape
    objective = Objective(STAGES, width, embed_dim)
    start_image_tower(clip, pool, TRAINING_SEED)
    generator = torch.Generator().manual_seed(TRAINING_SEED)
    codes = side_codes(len(DEFECTS), embed_dim, WIDE, TRAINING_SEED)
    say(f"text tower's distance from its codes {train_text(clip, captions, codes, generator):.4f}")
    return Training(
        clip,
        objective,
        copy.deepcopy(clip),
        optimizers_of(clip, objective),
        Batches(pool, clip.visual.patch_size[0], TRAINING_SEED),
        embed_all(clip, captions),
        generator,
    )


def train(arguments: argparse.Namespace) -> None:
    """The whole of it. Log lines go to `train.log` beside the weights; a killed run goes on from its last 500 steps."""
    torch.manual_seed(TRAINING_SEED)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state_file = arguments.out / "unfinished.pt"
    resumes = state_file.exists()
    log = (arguments.out / "train.log").open("a" if resumes else "w", buffering=1)

    def say(line: str) -> None:
        print(line, flush=True)
        log.write(line + "\n")

    started, steps = time.time(), arguments.steps
    captions = Captions(list(DEFECTS))
    pool = load_pool(arguments.pool, arguments.pairs, build_clip(1).visual.image_size[0])
    say(f"{len(pool.category)} pairs after {time.time() - started:.0f} s, {len(captions.used)} tokens, {steps} steps")
    training = prepare(captions, pool, say)
    if resumes:
        training.load(torch.load(state_file, weights_only=False))
        say(f"resumed at step {training.step}")
    mean = torch.zeros(len(Losses._fields))
    while training.step < steps:
        mean += training.update(steps) / REPORT
        if training.step % REPORT == 0:
            parts = "  ".join(f"{name} {value:.3f}" for name, value in zip(Losses._fields, mean.tolist(), strict=True))
            say(f"step {training.step}  {time.time() - started:.0f} s  {parts}")
            mean.zero_()
        if training.step % SAVE == 0:
            torch.save(training.state(), state_file.with_suffix(".part"))
            state_file.with_suffix(".part").replace(state_file)
    narrow = side_codes(len(DEFECTS), training.clip.visual.proj.shape[1], NARROW, TRAINING_SEED)
    say(f"sides narrowed, distance {train_text(training.average, captions, narrow, training.generator):.4f}")
    export(training.average, captions, arguments.out / WEIGHTS_NAME)
    state_file.unlink(missing_ok=True)


def main() -> None:
    """Read the command line."""
    here = ARCHITECTURE_FILE.parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=here, help="weights and log")
    parser.add_argument("--pool", type=Path, default=Path("data"), help="where the drawn images are kept")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs of images per category")
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
