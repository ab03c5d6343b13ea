"""Measure a demo backbone: SDP on all categories, SDP+ on those that its projections have never seen.

`python -m experiments.demo_backbone.measure --weights FILE [--seed report]`. B images, S side of the model's input.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.demo.render import render
from datamodules.demo.settings import (
    DEFECTS,
    PROJECTION_TEST,
    PROJECTION_TRAIN,
    REPORT_SEED,
    SELECTION_SEED,
    SIZE,
    TEST_GOOD,
    TEST_PER_DEFECT,
)
from experiments.demo_backbone.batches import MEAN, STD
from experiments.demo_backbone.captions import project_prompts
from experiments.demo_backbone.towers import ARCHITECTURE_FILE
from src.clip.backbone import Backbone, find_backbone
from src.metric_names import METRIC_NAMES
from src.metrics.benchmark_metrics import BenchmarkMetrics, BenchmarkResult
from src.models.method import Method
from src.models.sdp import SDP
from src.models.sdp_plus import SDPPlus

SEEDS = {"selection": SELECTION_SEED, "report": REPORT_SEED}
# The settings of sdp_demo and sdp_plus_demo.
SIGMA, RATE, EPOCHS, FOCAL_WEIGHT = 4.0, 1e-3, 20, 5.0
SETTINGS: dict[str, Any] = {"feature_layers": [1, 2, 3, 4], "feature_tap": "reference", "representative": "mean"}


class TestSet(NamedTuple):
    """images: (N, 3, S, S), normalised. masks: (N, S, S) of {0, 1}. labels: (N,). categories: N names."""

    images: Tensor
    masks: Tensor
    labels: Tensor
    categories: list[str]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, list[str]]]:
        """Consecutive batches."""
        for i in range(0, len(self.labels), size):
            part = slice(i, i + size)
            yield self.images[part], self.masks[part], self.labels[part], self.categories[part]


def draw_test_set(seed: int, categories: Sequence[str], side: int) -> TestSet:
    """The test split that `datamodules.demo` writes to disk for this seed, in memory and preprocessed."""
    images, masks, labels, names = [], [], [], []
    for category in categories:
        for kind in ("good", *DEFECTS[category]):
            for number in range(TEST_GOOD if kind == "good" else TEST_PER_DEFECT):
                photo = render(seed, "test", category, kind, number, SIZE)
                small = Image.fromarray(photo.image).resize((side, side), Image.Resampling.BICUBIC)
                mask = Image.fromarray(photo.mask * np.uint8(255)).resize((side, side), Image.Resampling.BILINEAR)
                images.append(np.asarray(small))
                masks.append(np.asarray(mask) > 127)
                labels.append(int(kind != "good"))
                names.append(category)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return TestSet((pixels - MEAN) / STD, torch.from_numpy(np.stack(masks)).long(), torch.tensor(labels), names)


@torch.no_grad()
def score(method: Method, data: TestSet) -> BenchmarkResult:
    """All metrics of a method, per category and averaged."""
    method.text.prepare(list(dict.fromkeys(data.categories)), "demo")
    metrics = BenchmarkMetrics(list(dict.fromkeys(data.categories)), method.terms, method.fusion)
    for images, masks, labels, names in data.batches(64):
        scores = method(images, method.text(names))
        metrics.update(names, scores.terms, scores.single_score, labels, scores.anomaly_map, masks)
    return metrics.compute()


def fit_projections(method: SDPPlus, data: TestSet, epochs: int, rate: float, seed: int = 42) -> None:
    """Train SDP+ on data with masks: Adam, batches of 8 in random order. The frozen features are computed once."""
    method.text.prepare(list(dict.fromkeys(data.categories)), "demo")
    parts = [method.features(images) for images, *_ in data.batches(64)]
    features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    text = method.text(data.categories)
    optimizer = torch.optim.Adam(method.trainable_parameters().values(), lr=rate)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        for rows in torch.from_numpy(rng.permutation(len(data.labels))).split(8):
            batch = {name: values[rows] for name, values in features.items()}
            optimizer.zero_grad()
            method.loss(batch, text[rows], data.masks[rows])["loss"].backward()
            optimizer.step()


def load(weights: Path) -> Backbone:
    """The demo backbone, by the framework's own loader."""
    return Backbone(find_backbone("demo-clip", str(weights), str(ARCHITECTURE_FILE)))


def table(title: str, result: BenchmarkResult) -> str:
    """A Markdown table of percentages."""
    lines = [f"| {title} | {' | '.join(METRIC_NAMES)} |", "|---" * (1 + len(METRIC_NAMES)) + "|"]
    for name, values in (*result["categories"].items(), ("**mean**", result["mean"])):
        lines.append(f"| {name} | " + " | ".join(f"{100 * values[metric]:.1f}" for metric in METRIC_NAMES) + " |")
    return "\n".join(lines)


def measure(
    weights: Path, seed: int, sigma: float, epochs: int, rate: float, say: Callable[[str], None] = print
) -> None:
    """Print the tables of SDP and SDP+."""
    backbone, prompts = load(weights), project_prompts()
    side = backbone.architecture.image_size
    sdp = SDP(backbone, prompts, smoothing_sigma=sigma, **SETTINGS)
    say(table(f"SDP, sigma {sigma}", score(sdp, draw_test_set(seed, list(DEFECTS), side))))
    unseen = draw_test_set(seed, PROJECTION_TEST, side)
    torch.manual_seed(42)
    sdp_plus = SDPPlus(backbone, prompts, smoothing_sigma=sigma, focal_weight=FOCAL_WEIGHT, **SETTINGS)
    fit_projections(sdp_plus, draw_test_set(seed, PROJECTION_TRAIN, side), epochs, rate)
    say(table("SDP, unseen categories", score(sdp, unseen)))
    say(table(f"SDP+, unseen categories, {epochs} epochs, rate {rate:g}", score(sdp_plus, unseen)))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=ARCHITECTURE_FILE.with_name("demo_clip.safetensors"))
    parser.add_argument("--seed", choices=SEEDS, default="selection")
    parser.add_argument("--sigma", type=float, default=SIGMA)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(arguments.weights, SEEDS[arguments.seed], arguments.sigma, arguments.epochs, arguments.rate)


if __name__ == "__main__":
    main()
