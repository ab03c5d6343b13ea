"""What a page is made of is what the run has left."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lightning import Callback
from PIL import Image
from sklearn.metrics import average_precision_score

from src.report.description import Description
from tests.cli import Cli, Finished, golden_backbone
from tests.golden_reference import Golden
from tests.report.probe import Probe

PROBE = "+callbacks.probe._target_=tests.report.probe.Probe"
QUICK = ["prompts.templates=['a photo of a {}.']", "model.representative=mean"]


@pytest.fixture(scope="module")
def data(golden_a: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of two categories."""
    return golden_a.write_mvtec(tmp_path_factory.mktemp("data") / "mvtec")


@pytest.fixture(scope="module")
def options(golden_a: Golden, data: Path) -> list[str]:
    return ["+exp=sdp_mvtec", *golden_backbone(golden_a), *QUICK, f"test_data.root={data}"]


@pytest.fixture(scope="module")
def tested(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Description, dict]:
    """A test, with all its maps."""
    with pytest.MonkeyPatch.context() as patch:
        cli = Cli(patch, None, tmp_path_factory.mktemp("tested"))
        return described(cli, "eval", *options, "save_maps=true", PROBE)


def described(cli: Cli, command: str, *overrides: str, name: str = "run") -> tuple[Finished, Description, dict]:
    Probe.seen.clear()
    run = cli.ok(command, *overrides, name=name)
    description, shown = Probe.seen[0]
    return run, description, shown


def test_every_number_is_one_that_the_run_has_left(tested: tuple[Finished, Description, dict], data: Path) -> None:
    run, description, _ = tested
    assert description.metrics == run.metrics
    assert description.curves == json.loads((run.folder / "curves.json").read_text())
    assert description.title == run.provenance["protocol"]["line"]
    assert (description.hidden, len(description.cases)) == (0, len(run.predictions))
    for case, row in zip(description.cases, run.predictions, strict=True):
        assert (case["category"], case["image_path"]) == (row["category"], row["image_path"])
        assert case["single_score"] == float(row["single_score"])
        assert case["image_score"] == float(row["image_score"])
        assert case["label"] == int(row["label"])
        assert case["terms"] == {name: float(row[name]) for name in ("cls_score", "map_max")}
    for name, metrics in run.metrics["categories"].items():
        card = description.cards[name]
        rows = [row for row in run.predictions if row["category"] == name]
        assert card["thresholds"] == {
            level: metrics[f"{level}_F1Max_threshold"] for level in ("image", "single", "pixel")
        }
        assert card["vanished_masks"] == metrics["vanished_masks"]
        assert (card["images"], card["anomalous"]) == (len(rows), sum(row["label"] == "1" for row in rows))
        maps = [np.load(path) for path in run.folder.glob(f"maps/{name}/*/*.npy")]
        assert len(maps) == len(rows)
        assert card["low"] == pytest.approx(min(one.min() for one in maps))
        assert card["high"] == pytest.approx(max(one.max() for one in maps))
        histogram = description.histograms[name]
        scores = {label: [float(row["single_score"]) for row in rows if row["label"] == label] for label in "01"}
        for label, group in (("0", "normal"), ("1", "anomalous")):
            assert histogram[group] == np.histogram(scores[label], histogram["edges"])[0].tolist()


def test_the_curves_go_through_the_best_f1(tested: tuple[Finished, Description, dict]) -> None:
    run, _, _ = tested
    curves = json.loads((run.folder / "curves.json").read_text())
    assert curves.keys() == run.metrics["categories"].keys()
    for name, metrics in run.metrics["categories"].items():
        for level in ("image", "single", "pixel"):
            curve = curves[name][level]
            assert {len(values) for values in curve.values()} == {len(curve["threshold"])}
            assert ("pro" in curve) == (level == "pixel")
            at = curve["threshold"].index(metrics[f"{level}_F1Max_threshold"])
            precision, recall = curve["precision"][at], curve["recall"][at]
            assert 2 * precision * recall / (precision + recall) == pytest.approx(metrics[f"{level}_F1Max"], abs=1e-12)


def test_maps_are_ranked_by_the_ap_within_the_image(tested: tuple[Finished, Description, dict], data: Path) -> None:
    run, description, shown = tested
    found = 0
    for case in description.cases:
        source = Path(case["image_path"])
        anomaly_map = np.load(run.folder / "maps" / case["category"] / source.parent.name / f"{source.stem}.npy")
        mask_path = data / case["category"] / "ground_truth" / source.parent.name / f"{source.stem}_mask.png"
        if not mask_path.is_file():
            assert (case["pixel_ap"], case["mask_share"]) == (None, 0)
            assert shown[case["id"]].outline == ""
            continue
        size = (anomaly_map.shape[1], anomaly_map.shape[0])
        mask = np.asarray(Image.open(mask_path).convert("L").resize(size, Image.Resampling.BILINEAR)) > 127
        assert case["mask_share"] == pytest.approx(mask.mean())
        if mask.any():
            found += 1
            expected = average_precision_score(mask.ravel(), anomaly_map.ravel())
            assert case["pixel_ap"] == pytest.approx(expected, abs=1e-6)
            assert shown[case["id"]].outline.startswith("M")
        else:
            assert case["pixel_ap"] is None
    assert found > 0


def test_of_many_images_the_ranked_ones_are_shown(cli: Cli, options: list[str]) -> None:
    _, description, shown = described(cli, "eval", *options, PROBE, "+callbacks.probe.max_images=4")
    assert (len(description.cases), description.hidden) == (4, 2)
    assert all(case["ranks"] for case in description.cases)
    assert shown.keys() == {case["id"] for case in description.cases}


def test_a_prediction_has_what_there_is(cli: Cli, options: list[str], data: Path) -> None:
    own = [f"test_data.root={data / 'candle' / 'test'}", "test_data.category=candle"]
    run, description, shown = described(cli, "predict", *options[:-1], *own, PROBE)
    assert (description.metrics, description.curves, description.reproduce, description.fusion) == (
        None,
        {},
        None,
        None,
    )
    assert description.title == f"predict test ({len(run.predictions)} images)"
    card = description.cards["candle"]
    assert (card["normal"], card["anomalous"], card["unlabelled"]) == (0, 0, len(run.predictions))
    assert (card["mask_shares"], card["thresholds"]) == (None, {})
    best = max(run.predictions, key=lambda row: float(row["single_score"]))
    [first] = [case for case in description.cases if case["ranks"].get("highest score") == 1]
    assert first["image_path"] == best["image_path"]
    assert len(shown) == len(run.predictions)


@pytest.mark.slow
def test_features_from_a_cache_have_their_images_read_again(
    tested: tuple[Finished, Description, dict], cli: Cli, options: list[str]
) -> None:
    _, plain, shown = tested
    _, cached, from_files = described(cli, "eval", *options, PROBE, "feature_cache.enabled=true")
    assert [case["pixel_ap"] for case in cached.cases] == [case["pixel_ap"] for case in plain.cases]
    assert from_files.keys() == shown.keys()
    for number, pictures in from_files.items():
        assert pictures.heat_map == shown[number].heat_map
        assert pictures.outline == shown[number].outline
        small, large = (
            np.asarray(Image.open(io.BytesIO(one.image)).convert("L").resize((16, 16)), float)
            for one in (pictures, shown[number])
        )
        assert np.abs(small - large).mean() < 8


def test_an_image_that_is_gone_is_left_out(cli: Cli, options: list[str], data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    gone = next(iter(root.glob("candle/test/*/*.png")))
    taking = f"+callbacks.a={{_target_: tests.report.test_description.Taking, path: {gone}}}"
    cached = [*options[:-1], f"test_data.root={root}", "feature_cache.enabled=true"]
    run, description, shown = described(cli, "eval", *cached, taking, PROBE)
    [case] = [case for case in description.cases if root / case["image_path"] == gone]
    assert (case["width"], case["height"]) == (1, 1)
    assert case["id"] not in shown
    assert len(shown) == len(run.predictions) - 1


class Taking(Callback):
    """Removes an image when it was tested."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_results(self, *_: object) -> None:
        self.path.unlink()
