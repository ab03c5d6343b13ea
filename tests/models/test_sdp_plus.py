"""SDP and SDP+ as wholes; their figures are compared with the reference's in test_golden.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from src.clip.backbone import Backbone, find_backbone
from src.models.method import Scores, Targets
from src.models.sdp import SDP
from src.models.sdp_plus import SDPPlus
from tests.small_clip import PROMPTS, build_backbone, random_images, random_text, unit_embeddings

LAYERS = [3, 6, 9, 12]
PROJECTIONS = [f"projections.fc.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]


def build(model: type[SDP], backbone: Backbone, sigma: float = 1.5) -> SDP:
    torch.manual_seed(0)
    return model(backbone, PROMPTS, feature_layers=LAYERS, smoothing_sigma=sigma, representative="mean")


@pytest.mark.parametrize(("depth", "layers"), [(4, [1, 2, 3, 4]), (12, [3, 6, 9, 12]), (24, [6, 12, 18, 24])])
def test_levels_are_read_by_depth_unless_told_otherwise(depth: int, layers: list[int], tmp_path: Path) -> None:
    """24 blocks are those of ViT-L-14-336, 4 those of the demo's CLIP."""
    backbone, images, text = build_backbone(tmp_path, layers=depth), random_images(2), random_text(2)
    expected = SDP(backbone, PROMPTS, feature_layers=layers)(images, text)
    assert torch.equal(SDP(backbone, PROMPTS)(images, text).anomaly_map, expected.anomaly_map)
    other = SDP(backbone, PROMPTS, feature_layers=[depth])(images, text)
    assert not torch.equal(other.anomaly_map, expected.anomaly_map)


def targets() -> Targets:
    mask = torch.zeros(4, 32, 32)
    mask[1:, 8:20, 4:16] = 1
    return Targets(mask, None)


def test_the_papers_projections_have_2_296_320_parameters() -> None:
    plus = SDPPlus(Backbone(find_backbone("ViT-B-16-plus-240", None)), PROMPTS)
    assert sum(parameter.numel() for parameter in plus.trainable_parameters().values()) == 2_296_320


def test_only_the_projections_are_trainable_and_have_the_references_names(tiny: Backbone) -> None:
    assert list(build(SDPPlus, tiny).trainable_parameters()) == PROJECTIONS
    assert build(SDP, tiny).trainable_parameters() == {}


def test_a_training_step_changes_the_projections_and_nothing_else(tiny: Backbone) -> None:
    model = build(SDPPlus, tiny).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.trainable_parameters().values(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.loss(model.features(random_images(4)), random_text(4), targets())["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == PROJECTIONS
    assert [name for name, p in tiny.named_parameters() if p.grad is not None] == []
    assert losses[0] > losses[1] > losses[2]


def test_projected_tokens_are_linear_and_without_cls(tiny: Backbone) -> None:
    model, images = build(SDPPlus, tiny), random_images(2)
    assert isinstance(model, SDPPlus)
    projected, levels = model.projections(model.features(images)["original"]), model.dual_path(images)
    for tokens, level, fc in zip(projected, levels, model.projections.fc, strict=True):
        torch.testing.assert_close(tokens, level.original[:, 1:] @ fc.weight.T + fc.bias)


def test_map_is_sdps_plus_the_levels_probabilities_then_smoothed(tiny: Backbone) -> None:
    images, text = random_images(3), random_text(3)
    sdp, plus = build(SDP, tiny, sigma=0), build(SDPPlus, tiny)
    raw = sdp(images, text).anomaly_map
    assert isinstance(plus, SDPPlus)
    levels = plus.dual_path(images)
    for level, fc in zip(levels, plus.projections.fc, strict=True):
        tokens = F.normalize(fc(level.original[:, 1:]), dim=-1)
        cosines = torch.stack([(tokens * text[:, None, :, c]).sum(dim=-1) for c in range(2)], dim=1)  # (B, 2, P)
        logits = F.interpolate(100 * cosines.view(3, 2, 4, 4), size=(32, 32), mode="bilinear", align_corners=True)
        raw = raw + logits.softmax(dim=1)[:, 1]
    scores = plus(images, text)
    expected = torch.stack([torch.from_numpy(gaussian_filter(one.detach().numpy(), 1.5)) for one in raw])
    torch.testing.assert_close(scores.anomaly_map, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.terms["map_max"], expected.flatten(1).max(dim=1).values, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.terms["cls_score"], sdp(images, text).terms["cls_score"])


def test_cls_score_is_clips_own_probability(tiny: Backbone) -> None:
    images, text = random_images(3), random_text(3)
    embeddings = F.normalize(tiny.clip.encode_image(images), dim=-1)
    logits = 100 * torch.stack([embeddings[i] @ text[i] for i in range(3)])
    torch.testing.assert_close(
        build(SDP, tiny)(images, text).terms["cls_score"], logits.softmax(dim=-1)[:, 1], rtol=0, atol=1e-4
    )


def tensors_of(scores: Scores) -> list[Tensor]:
    return [scores.anomaly_map, *scores.terms.values(), scores.single_score]


@pytest.mark.parametrize("model", [SDP, SDPPlus])
@torch.no_grad()
def test_an_images_scores_do_not_depend_on_the_batch(model: type[SDP], tiny: Backbone) -> None:
    method, images, text = build(model, tiny), random_images(5), random_text(5)
    together = method(images, text)
    for index in range(5):
        alone = method(images[index : index + 1], text[index : index + 1])
        for a, b in zip(tensors_of(together), tensors_of(alone), strict=True):
            torch.testing.assert_close(a[index], b[0], rtol=0, atol=1e-4)


def test_loss_is_the_sum_of_its_parts_over_the_levels(tiny: Backbone) -> None:
    model = build(SDPPlus, tiny)
    loss = model.loss(model.features(random_images(4)), random_text(4), targets())
    assert loss.keys() == {"loss", "focal", "dice"}
    torch.testing.assert_close(loss["loss"], loss["focal"] + loss["dice"])
    single = SDPPlus(tiny, PROMPTS, feature_layers=[3], representative="mean")
    single.projections.fc[0] = model.get_submodule("projections.fc.0")
    assert single.loss(single.features(random_images(4)), random_text(4), targets())["loss"] < loss["loss"]


def test_the_losses_are_weighted(tiny: Backbone) -> None:
    model = build(SDPPlus, tiny)
    model.focal_weight, model.dice_weight = 2.0, 0.25
    loss = model.loss(model.features(random_images(4)), random_text(4), targets())
    torch.testing.assert_close(loss["loss"], 2 * loss["focal"] + loss["dice"] / 4)


def test_scores_under_bfloat16_are_float32(tiny: Backbone) -> None:
    model, images, text = build(SDPPlus, tiny), random_images(2), random_text(2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(images, text)
    assert {score.dtype for score in tensors_of(scores)} == {torch.float32}


def test_sdp_has_no_loss(tiny: Backbone) -> None:
    with pytest.raises(NotImplementedError, match="model sdp has nothing to train"):
        build(SDP, tiny).loss({}, random_text(4), targets())


def test_settings_out_of_range_are_refused(tiny: Backbone) -> None:
    with pytest.raises(ValueError, match=r"smoothing_sigma must be 0 or more pixels, but got -1"):
        build(SDP, tiny, sigma=-1)
    for sigma in (float("inf"), float("nan"), "8"):
        with pytest.raises(ValueError, match=rf"smoothing_sigma must be 0 or more pixels, but got {sigma}"):
            build(SDP, tiny, sigma=sigma)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^focal_weight and dice_weight must be 0 or more, .*dice_weight=-1"):
        SDPPlus(tiny, PROMPTS, dice_weight=-1)
    with pytest.raises(ValueError, match=r"representative must be one of mean, .*'median'"):
        SDP(tiny, PROMPTS, representative="median")


def test_text_module_forgets_the_classes_of_the_last_data_set(tiny: Backbone) -> None:
    text = build(SDP, tiny).text
    text.prepare(["screw", "bottle"], "mvtec")
    first = text(["bottle", "screw", "bottle"])
    assert first.shape == (3, 24, 2)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(first.norm(dim=1), torch.ones(3, 2))
    for column, side in enumerate(PROMPTS.sentences("screw")):
        expected = F.normalize(unit_embeddings(tiny, side).mean(dim=0), dim=0)
        torch.testing.assert_close(first[1, :, column], expected, rtol=0, atol=1e-6)
    text.prepare(["candle"], "mvtec")
    with pytest.raises(KeyError):
        text(["bottle"])
