"""Every golden array, through the public classes."""

from __future__ import annotations

import shutil

import pytest
import torch

from src.clip.backbone import Backbone
from src.models.dual_path import DualPath
from src.models.maps import gaussian_blur
from src.models.method import Targets
from src.models.representative import representative_vector
from src.models.sdp import SDP, sum_similarities
from src.models.sdp_plus import SDPPlus
from src.models.similarity import CLIP_SCALE, anomalous_probability
from tests.golden_reference import Golden, paper_prompts
from tests.small_clip import unit_embeddings

TOLERANCE = {"rtol": 0, "atol": 1e-4}
TEXT_TOLERANCE = {"rtol": 0, "atol": 2e-3}  # the reference rounds all text matrices but `mean` to float16
DBSCAN = {"mvtec": {"eps": 0.5, "min_samples": 15}, "visa": {"eps": 1.5, "min_samples": 25}}


def build(model: type[SDP], golden: Golden, sigma: float = 8.0, tap: str = "reference") -> SDP:
    return model(
        golden.backbone,
        paper_prompts(),
        feature_layers=golden.feature_layers,
        feature_tap=tap,  # type: ignore[arg-type]
        smoothing_sigma=sigma,
        representative="mean",
    )


def build_sdp_plus(golden: Golden, sigma: float) -> SDPPlus:
    model = build(SDPPlus, golden, sigma)
    assert isinstance(model, SDPPlus)
    model.projections.load_state_dict(golden.linear_state)
    return model


def test_tokens_of_both_paths(golden: Golden) -> None:
    levels = DualPath(golden.backbone, golden.feature_layers, "reference")(golden.images)
    assert len(levels) == 4
    for layer, level in zip(golden.feature_layers, levels, strict=True):
        torch.testing.assert_close(level.original, golden[f"ori/{layer}"], **TOLERANCE)
        torch.testing.assert_close(level.surgery, golden[f"surgery/{layer}"], **TOLERANCE)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_tokens(golden_a: Golden) -> None:
    compiled = Backbone(golden_a.source, compiled=True)
    with torch.inference_mode():
        levels = DualPath(compiled, golden_a.feature_layers, "reference")(golden_a.images)
    for layer, level in zip(golden_a.feature_layers, levels, strict=True):
        torch.testing.assert_close(level.original, golden_a[f"ori/{layer}"], **TOLERANCE)
        torch.testing.assert_close(level.surgery, golden_a[f"surgery/{layer}"], **TOLERANCE)


def test_block_output_differs_at_all_levels_but_the_last(golden: Golden) -> None:
    levels = DualPath(golden.backbone, golden.feature_layers, "block_output")(golden.images)
    *earlier, last = golden.feature_layers
    for layer, level in zip(earlier, levels, strict=False):
        assert (level.original - golden[f"ori/{layer}"]).abs().max() > 1e-2
        assert (level.surgery[:, 0] - golden[f"surgery/{layer}"][:, 0]).abs().max() > 1e-2
    torch.testing.assert_close(levels[-1].original, golden[f"ori/{last}"], **TOLERANCE)
    torch.testing.assert_close(levels[-1].surgery, golden[f"surgery/{last}"], **TOLERANCE)


def test_text_matrices(golden: Golden) -> None:
    embedded = {
        name: [unit_embeddings(golden.backbone, side) for side in paper_prompts().sentences(name)]
        for name in golden.classes
    }
    keys = [key for key in golden.arrays.files if key.startswith("text/")]
    assert len(keys) == 6 * len(golden.classes)
    for key in keys:
        _, method_and_data, class_name = key.split("/")
        method, data = method_and_data.rsplit("_", 1)
        tolerance = TOLERANCE if method == "mean" else TEXT_TOLERANCE
        for column, embeddings in enumerate(embedded[class_name]):
            vector = representative_vector(embeddings, method, DBSCAN[data])
            torch.testing.assert_close(vector, golden[key][:, column], **tolerance)


def test_text_module_looks_up_per_image(golden: Golden) -> None:
    text = build(SDP, golden).text
    text.prepare(golden.classes, "mvtec")
    torch.testing.assert_close(text(golden.classes_of_images), golden.text, **TOLERANCE)


def test_sdp(golden: Golden) -> None:
    model = build(SDP, golden)
    surgery = model.features(golden.images)["surgery"]
    torch.testing.assert_close(sum_similarities(surgery, golden.text), golden["similarity"], **TOLERANCE)
    torch.testing.assert_close(model.surgery_map(surgery, golden.text), golden["map_raw"], **TOLERANCE)
    probability = anomalous_probability(surgery[:, -1, :1], golden.text, CLIP_SCALE)[:, 0]
    torch.testing.assert_close(probability, golden["prob"], **TOLERANCE)


@pytest.mark.parametrize("sigma", [2, 8])
def test_sdp_scores(golden: Golden, sigma: int) -> None:
    scores = build(SDP, golden, sigma)(golden.images, golden.text)
    torch.testing.assert_close(scores.anomaly_map, golden[f"map_sdp_sigma{sigma}"], **TOLERANCE)
    torch.testing.assert_close(scores.terms["cls_score"], golden["prob"], **TOLERANCE)
    torch.testing.assert_close(scores.terms["map_max"], golden[f"map_sdp_sigma{sigma}"].amax(dim=(1, 2)), **TOLERANCE)


def test_tuned_maps(golden: Golden) -> None:
    model = build_sdp_plus(golden, sigma=8)
    margins = model.margins(model.features(golden.images)["original"], golden.text)
    torch.testing.assert_close(margins.sigmoid().sum(dim=1), golden["map_linear"], **TOLERANCE)


@pytest.mark.parametrize("sigma", [2, 8])
def test_sdp_plus_scores(golden: Golden, sigma: int) -> None:
    scores = build_sdp_plus(golden, sigma)(golden.images, golden.text)
    torch.testing.assert_close(scores.anomaly_map, golden[f"map_sdp_plus_sigma{sigma}"], **TOLERANCE)
    torch.testing.assert_close(scores.terms["cls_score"], golden["prob"], **TOLERANCE)


def test_training_loss(golden: Golden) -> None:
    model = build_sdp_plus(golden, sigma=8)
    loss = model.loss(model.features(golden.images), golden.text, Targets(golden["loss/mask"], None))
    torch.testing.assert_close(loss["loss"], golden["loss/value"], **TOLERANCE)
    torch.testing.assert_close(loss["focal"] + loss["dice"], loss["loss"])


def test_smoothing_of_the_reference_map(golden: Golden) -> None:
    torch.testing.assert_close(gaussian_blur(golden["map_raw"], 8), golden["map_sdp_sigma8"], **TOLERANCE)
