"""Every golden array of the baselines, through the public classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.errors import UserError
from src.metrics.functional import fuse
from src.models.anomalyclip import AnomalyCLIP
from src.models.april_gan import AprilGAN
from src.models.maps import aligned_maps, gaussian_blur
from src.models.memory import level_distances
from src.models.method import Features, Method, Targets
from src.models.similarity import FIXED_SCALE, anomalous_probability
from src.models.winclip import WinCLIP, mean_over_windows, windows_of
from src.models.winclip_plus import WinCLIPPlus, half_distance
from src.run.trained_weights import load_trained_weights, read_trained_weights
from tests.golden_baselines import Baseline, normalised

TOLERANCE = {"rtol": 0, "atol": 1e-4}
GRADIENT_TOLERANCE = {"rtol": 0, "atol": 1e-2}  # of prompts that pass through float16


@pytest.fixture(scope="module")
def winclip(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    return Baseline("winclip", tmp_path_factory.mktemp("winclip"))


@pytest.fixture(scope="module")
def april_gan(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    return Baseline("april_gan", tmp_path_factory.mktemp("april_gan"))


@pytest.fixture(scope="module")
def anomalyclip(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    return Baseline("anomalyclip", tmp_path_factory.mktemp("anomalyclip"))


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.reshape(found.shape).to(found.dtype), **TOLERANCE)


def text_of(method: Method, golden: Baseline) -> Tensor:
    method.text.prepare(golden.classes, "mvtec")
    text: Tensor = method.text(golden.classes_of_images)
    return text


def some(features: Features, rows: Sequence[int] | slice) -> Features:
    return {name: values[rows] for name, values in features.items()}


# WinCLIP


def test_winclip_text_and_windows(winclip: Baseline) -> None:
    method = WinCLIP(winclip.backbone, winclip.prompts)
    method.text.prepare(winclip.classes, "mvtec")
    for name in winclip.classes:
        same(method.text([name])[0].T, F.normalize(winclip[f"text/{name}"], dim=-1))
        sides = map(winclip.backbone.embed_sentences, winclip.prompts.sentences(name))
        raw = torch.stack([side.mean(dim=0) for side in sides])
        same(raw, winclip[f"text/{name}"])
    for scale in (2, 3):
        assert windows_of(5, scale).T.tolist() == winclip[f"masks/{scale}"].tolist()


def test_winclip_embeddings(winclip: Baseline) -> None:
    method = WinCLIPPlus(winclip.backbone, winclip.prompts)
    pairs = ((winclip.images, "embeddings"), (normalised(winclip["reference_images"]), "reference"))
    for images, prefix in pairs:
        features = method.features(images)
        for name in ("window_2", "window_3", "patch"):
            same(features[name], winclip[f"{prefix}/{name}"])
    same(method.features(winclip.images)["image"], winclip["embeddings/image"])


def test_winclip_zero_shot(winclip: Baseline) -> None:
    method = WinCLIP(winclip.backbone, winclip.prompts)
    text, features = text_of(method, winclip), method.features(winclip.images)
    for scale in (2, 3):
        scores = anomalous_probability(features[f"window_{scale}"], text, FIXED_SCALE)
        same(scores, winclip[f"zero_shot/window_scores_{scale}"])
        same(mean_over_windows(scores, scale), winclip[f"zero_shot/aggregated_{scale}"])
    same(method.zero_shot_grid(features, text), winclip["zero_shot/multi_scale"])
    scores = method.score(features, text)
    same(scores.anomaly_map, winclip["zero_shot/map"])
    same(scores.single_score, winclip["zero_shot/score"])
    same(scores.terms["cls_score"], winclip["zero_shot/score"])


@pytest.mark.parametrize("shots", [1, 2])
def test_winclip_few_shot(winclip: Baseline, shots: int) -> None:
    method = WinCLIPPlus(winclip.backbone, winclip.prompts)
    text, features = text_of(method, winclip), method.features(winclip.images)
    references = method.features(normalised(winclip["reference_images"][:shots]))
    prefix = f"few_shot_{shots}"
    for row in range(6):
        own = some(features, row)  # type: ignore[arg-type]
        same(half_distance(own["patch"], references["patch"]), winclip[f"{prefix}/association_patch"][row])
        for scale in (2, 3):
            distances = half_distance(own[f"window_{scale}"], references[f"window_{scale}"])
            same(distances, winclip[f"{prefix}/association_windows_{scale}"][row])
            same(mean_over_windows(distances[None], scale), winclip[f"{prefix}/association_{scale}"][row])
        same(method.association(own, references), winclip[f"{prefix}/association"][row])
    scores = method.score(features, text, [references] * 6)
    same(scores.anomaly_map, winclip[f"{prefix}/map"])
    same(scores.single_score, winclip[f"{prefix}/score"])


def test_winclip_with_other_scales(winclip: Baseline) -> None:
    method = WinCLIPPlus(winclip.backbone, winclip.prompts, scales=[2, 4])
    zero_shot = WinCLIP(winclip.backbone, winclip.prompts, scales=[2, 4])
    text, features = text_of(method, winclip), method.features(winclip.images)
    scores = {"zero_shot": zero_shot.score(features, text)}
    for shots in (1, 2):
        references = method.features(normalised(winclip["reference_images"][:shots]))
        scores[f"few_shot_{shots}"] = method.score(features, text, [references] * 6)
    for name, one in scores.items():
        same(one.anomaly_map, winclip[f"scales_2_4/{name}/map"])
        same(one.single_score, winclip[f"scales_2_4/{name}/score"])


# APRIL-GAN


def build_april_gan(golden: Baseline, folder: Path) -> AprilGAN:
    method = AprilGAN(golden.backbone, golden.prompts, golden.settings["feature_layers"])
    path = golden.write_authors_checkpoint(folder / "authors.pth")
    load_trained_weights(method, read_trained_weights(path), path)
    return method


def test_april_gan_features_and_text(april_gan: Baseline, tmp_path: Path) -> None:
    method = build_april_gan(april_gan, tmp_path)
    features = method.features(april_gan.images)
    same(features["image"], april_gan["features/image_raw"])
    tokens = april_gan.backbone.block_outputs(april_gan.images, method.feature_layers)
    for index, layer in enumerate(method.feature_layers):
        same(tokens[layer], april_gan[f"tokens/{layer}"])
        same(features["tokens"][:, index], april_gan[f"tokens/{layer}"][:, 1:])
        for name in april_gan.classes:
            memory = method.features(normalised(april_gan[f"reference_images/{name}"]))[method.memory][:, index]
            same(memory.flatten(0, 1), april_gan[f"memory_2/{name}/{layer}"])
    method.text.prepare(april_gan.classes, "mvtec")
    for name in april_gan.classes:
        same(method.text([name])[0], april_gan[f"text/{name}"])


def test_april_gan_zero_shot(april_gan: Baseline, tmp_path: Path) -> None:
    method = build_april_gan(april_gan, tmp_path)
    text, features = text_of(method, april_gan), method.features(april_gan.images)
    projected = method.projections(features["tokens"])
    maps = method.margins(features["tokens"], text).sigmoid()
    for index, layer in enumerate(method.feature_layers):
        same(100 * F.normalize(projected[index], dim=-1) @ text, april_gan[f"zero_shot/logits/{layer}"])
        same(maps[:, index], april_gan[f"zero_shot/map_level/{layer}"])
    scores = method.score(features, text)
    same(scores.anomaly_map, april_gan["zero_shot/map"])
    same(scores.single_score, april_gan["zero_shot/score"])
    same(scores.terms["cls_score"], april_gan["zero_shot/prob"])


@pytest.mark.parametrize("shots", [1, 2])
def test_april_gan_few_shot(april_gan: Baseline, tmp_path: Path, shots: int) -> None:
    method = build_april_gan(april_gan, tmp_path)
    text, features = text_of(method, april_gan), method.features(april_gan.images)
    kept = {
        name: method.features(normalised(april_gan[f"reference_images/{name}"][:shots])) for name in april_gan.classes
    }
    references = [kept[name] for name in april_gan.classes_of_images]
    distances = level_distances(features["tokens"], [own["tokens"] for own in references])
    maps = aligned_maps(distances, 80)
    prefix = f"few_shot_{shots}"
    for index, layer in enumerate(method.memory_layers):
        same(distances[:, index], april_gan[f"{prefix}/distance/{layer}"])
        if shots == 2:
            same(maps[:, index], april_gan[f"{prefix}/map_level/{layer}"])
    same(
        method.memory_map(features["tokens"], [own["tokens"] for own in references]), april_gan[f"{prefix}/map_memory"]
    )
    scores = method.score(features, text, references)
    same(scores.anomaly_map, april_gan[f"{prefix}/map"])
    same(scores.terms["map_max"], april_gan[f"{prefix}/max"])
    same(scores.single_score, (april_gan["zero_shot/prob"] + april_gan[f"{prefix}/max"]) / 2)
    for name in april_gan.classes:
        rows = [row for row, own in enumerate(april_gan.classes_of_images) if own == name]
        terms = {term: values[rows] for term, values in scores.terms.items()}
        same(fuse(terms, scores.single_score[rows], method.few_shot_fusion), april_gan[f"{prefix}/score"][rows])


def test_april_gan_loss(april_gan: Baseline, tmp_path: Path) -> None:
    method = build_april_gan(april_gan, tmp_path)
    loss = method.loss(
        method.features(april_gan.images), text_of(method, april_gan), Targets(april_gan["masks"], april_gan["labels"])
    )
    same(loss["focal"], april_gan["loss/focal_dice"][:, 0].sum())
    same(loss["dice"], april_gan["loss/focal_dice"][:, 1].sum())
    same(loss["loss"], april_gan["loss/value"])


# AnomalyCLIP


def build_anomalyclip(golden: Baseline, folder: Path, layers: Sequence[int] | None = None) -> AnomalyCLIP:
    keys = ("n_ctx", "depth", "t_n_ctx", "dpam_layer")
    method = AnomalyCLIP(
        golden.backbone,
        golden.prompts,
        golden.settings["feature_layers"] if layers is None else layers,
        **{key: golden.settings[key] for key in keys},
        smoothing_sigma=golden.settings["sigma"],
    )
    path = golden.write_authors_checkpoint(folder / "authors.pth")
    load_trained_weights(method, read_trained_weights(path), path)
    return method


def test_anomalyclip_text(anomalyclip: Baseline, tmp_path: Path) -> None:
    text = build_anomalyclip(anomalyclip, tmp_path).text
    assert text.tokens.tolist() == anomalyclip["tokenized_prompts"].tolist()
    same(text.token_embeddings(), anomalyclip["prompts"])
    same(text.embed(), anomalyclip["text_raw"])
    same(text(["a", "b"])[1].T, anomalyclip["text"])


def test_anomalyclip_of_another_depth(anomalyclip: Baseline, tmp_path: Path) -> None:
    """Tokens of a block that the tower has must not be left out."""
    assert anomalyclip.settings["depth"] == 9
    path = anomalyclip.write_authors_checkpoint(tmp_path / "authors.pth")
    for depth in (1, 8, 10):
        with pytest.raises(UserError, match=rf"expected {depth + 1} tensors .*, found 10 "):
            load_trained_weights(
                AnomalyCLIP(anomalyclip.backbone, anomalyclip.prompts, depth=depth), read_trained_weights(path), path
            )


def test_anomalyclip_scores(anomalyclip: Baseline, tmp_path: Path) -> None:
    method = build_anomalyclip(anomalyclip, tmp_path)
    text, features = method.text(["object"] * 6).detach(), method.features(anomalyclip.images)
    same(features["image"], anomalyclip["features/image_raw"])
    similarity = anomalous_probability(features["tokens"], text, 1 / 0.07)
    maps = method.level_maps(features["tokens"], text)
    for index, layer in enumerate(method.feature_layers):
        same(features["tokens"][:, index], anomalyclip[f"features/patch/{layer}"])
        same(similarity[:, index], anomalyclip[f"similarity/{layer}"][..., 1])
        same(maps[:, index], anomalyclip[f"similarity_map/{layer}"])
    same(maps.sum(dim=1), anomalyclip["map_raw"])
    scores = method.score(features, text)
    same(scores.anomaly_map, anomalyclip["map"])
    same(scores.single_score, anomalyclip["prob"])


def test_anomalyclip_before_its_fix_is_four_times_the_last_level(anomalyclip: Baseline, tmp_path: Path) -> None:
    method = build_anomalyclip(anomalyclip, tmp_path, layers=[24])
    text, features = method.text(["object"] * 6).detach(), method.features(anomalyclip.images)
    for layer in (6, 12, 18, 24):
        same(features["tokens"][:, 0], anomalyclip[f"pre_fix/features/patch/{layer}"])
    raw_map = 4 * method.level_maps(features["tokens"], text).sum(dim=1)
    same(raw_map, anomalyclip["pre_fix/map_raw"])
    same(gaussian_blur(raw_map, 4), anomalyclip["pre_fix/map"])


def test_anomalyclip_loss_and_gradients(anomalyclip: Baseline, tmp_path: Path) -> None:
    method = build_anomalyclip(anomalyclip, tmp_path)
    text, features = method.text(["object"] * 6), method.features(anomalyclip.images)
    losses = method.loss(features, text, Targets(anomalyclip["masks"], anomalyclip["labels"]))
    parts = anomalyclip["loss/focal_dice_dice"].sum(dim=0)
    for name, expected in zip(("focal", "dice", "dice_normal"), parts, strict=True):
        same(losses[name], expected)
    same(losses["image"], anomalyclip["loss/image"])
    same(losses["loss"] - losses["image"], anomalyclip["loss/pixel"])
    same(losses["loss"], anomalyclip["loss/total"])
    losses["loss"].backward()
    parameters = method.trainable_parameters()
    assert len(parameters) == 10
    for name, parameter in parameters.items():
        tolerance = GRADIENT_TOLERANCE if "compound" in name else TOLERANCE
        assert parameter.grad is not None
        expected = anomalyclip[f"loss/grad/{name.removeprefix('text.')}"]
        torch.testing.assert_close(parameter.grad, expected.reshape(parameter.shape), **tolerance)
