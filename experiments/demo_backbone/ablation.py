"""What each part of SDP and SDP+ contributes on the demo: `python -m experiments.demo_backbone.ablation`.

B images, L levels, P patches, W width, D embedding.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.demo.settings import PROJECTION_TEST, PROJECTION_TRAIN
from experiments.demo_backbone.captions import project_prompts
from experiments.demo_backbone.measure import (
    EPOCHS,
    FOCAL_WEIGHT,
    RATE,
    SEEDS,
    SETTINGS,
    SIGMA,
    TestSet,
    draw_test_set,
    fit_projections,
    load,
    score,
)
from experiments.demo_backbone.towers import ARCHITECTURE_FILE
from src.clip.backbone import Backbone
from src.metric_names import METRIC_NAMES
from src.models.maps import to_grid
from src.models.method import Features, Method
from src.models.sdp import SDP
from src.models.sdp_plus import SDPPlus
from src.models.similarity import CLIP_SCALE


class PlainSimilarity(SDP):
    """SDP without feature surgery: each level's anomalous probability at CLIP's temperature, summed."""

    def surgery_map(self, surgery: Tensor, text: Tensor) -> Tensor:
        """The levels' anomalous probabilities, summed and brought to the image's size: (B, H, W)."""
        logits = CLIP_SCALE * F.normalize(surgery[:, :, 1:], dim=-1) @ text[:, None]  # (B, L, P, 2)
        similarity = logits.softmax(dim=-1).sum(dim=1)[..., 1:]  # (B, P, 1)
        size = (self.image_size, self.image_size)
        return F.interpolate(to_grid(similarity), size=size, mode="bilinear", align_corners=False)[:, 0]


class OnePath(SDP):
    """SDP without the second path: its patch tokens are the original path's, normed and projected."""

    def features(self, images: Tensor) -> Features:
        """The levels' original tokens in the joint embedding, (B, L, 1+P, D), in the place of the surgery tokens."""
        project = self.dual_path.backbone.project
        return {"surgery": torch.stack([project(level.original) for level in self.dual_path(images)], dim=1)}


class OnePathPlainSimilarity(OnePath, PlainSimilarity):
    """Neither."""


def variants(backbone: Backbone, train: TestSet) -> Iterator[tuple[str, Method]]:
    """Every method to compare, with its name."""
    prompts = project_prompts()

    def build(kind: type[SDP], **changed: Any) -> SDP:
        torch.manual_seed(42)
        method = kind(backbone, prompts, smoothing_sigma=SIGMA, **{**SETTINGS, **changed})
        if isinstance(method, SDPPlus):
            method.focal_weight = FOCAL_WEIGHT
            fit_projections(method, train, EPOCHS, RATE)
        return method

    yield "SDP", build(SDP)
    yield "SDP, `block_output`", build(SDP, feature_tap="block_output")
    yield "SDP without feature surgery", build(PlainSimilarity)
    yield "SDP without the second path", build(OnePath)
    yield "SDP without both", build(OnePathPlainSimilarity)
    for layer in SETTINGS["feature_layers"]:
        yield f"SDP, level {layer} alone", build(SDP, feature_layers=[layer])
    yield "SDP+", build(SDPPlus)
    yield "SDP+, `block_output`", build(SDPPlus, feature_tap="block_output")
    for layer in SETTINGS["feature_layers"]:
        yield f"SDP+, level {layer} alone", build(SDPPlus, feature_layers=[layer])


def main() -> None:
    """Print a Markdown table of means over the unseen categories, in percent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", choices=SEEDS, default="report")
    seed = SEEDS[parser.parse_args().seed]
    backbone = load(ARCHITECTURE_FILE.with_name("demo_clip.safetensors"))
    side = backbone.architecture.image_size
    train, test = draw_test_set(seed, PROJECTION_TRAIN, side), draw_test_set(seed, PROJECTION_TEST, side)
    print(f"| | {' | '.join(METRIC_NAMES)} |\n|{'---|' * (1 + len(METRIC_NAMES))}")
    for name, method in variants(backbone, train):
        mean = score(method, test)["mean"]
        print(f"| {name} | " + " | ".join(f"{100 * mean[metric]:.1f}" for metric in METRIC_NAMES) + " |", flush=True)


if __name__ == "__main__":
    main()
