"""Thresholds with a promise: counted by hand, from the command line, and refused where they don't belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.errors import UserError
from src.calibration import Calibration, CategoryCalibration, Decisions, conformal_threshold, images_needed
from src.run.merge import merge
from tests.cli import Cli, Finished, golden_backbone
from tests.golden_reference import Golden
from tests.test_own_images import draw

SCORES = st.lists(st.floats(-3, 3) | st.sampled_from([0.0, 1.0]), min_size=4, max_size=60)
ALPHAS = st.sampled_from([0.2, 0.25, 0.3, 0.5, 0.9])


@pytest.mark.parametrize(
    ("alpha", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.2, 4), (0.001, 999), (0.3, 3), (0.5, 1), (0.15, 6)]
)
def test_the_number_of_images_is_exact(alpha: float, needed: int) -> None:
    assert images_needed(alpha) == needed
    values = list(np.random.default_rng(0).random(needed))
    assert conformal_threshold(values, alpha) == max(values)
    with pytest.raises(ValueError, match=f"expected {needed} values"):
        conformal_threshold(values[1:], alpha)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 2, float("nan")])
def test_a_promise_is_a_share(alpha: float) -> None:
    with pytest.raises((UserError, ValueError)):
        images_needed(alpha)


@settings(max_examples=200, deadline=None)
@given(SCORES, ALPHAS, st.floats(-3, 3))
def test_threshold_and_p_value_agree_with_counting(scores: list[float], alpha: float, new: float) -> None:
    calibration = CategoryCalibration.of(scores, scores, alpha)
    # The smallest value that at most floor(alpha (n + 1)) - 1 values exceed, found by trying them all.
    allowed = int(np.floor(alpha * (len(scores) + 1) + 1e-9)) - 1
    expected = min(value for value in scores if sum(other > value for other in scores) <= allowed)
    assert calibration.score_threshold == expected
    p_value = (1 + sum(score >= new for score in scores)) / (len(scores) + 1)
    assert calibration.p_value(new) == p_value
    for one in (new, expected, *scores):
        assert (calibration.p_value(one) <= alpha) == (one > calibration.score_threshold)


def test_the_promise_is_kept_on_average() -> None:
    rng = np.random.default_rng(0)
    wrong = [rng.normal() > conformal_threshold(rng.normal(size=9).tolist(), 0.1) for _ in range(20_000)]
    assert abs(np.mean(wrong) - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 20_000)


def calibration_of(values: list[float] | None = None) -> Calibration:
    good = values or [0.3, 0.1, 0.2, 0.4]
    return Calibration.of({"cup": (good, [10 * value for value in good])}, 0.2, {"tile": None, "model": {"sigma": 4}})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    calibration_of().write(tmp_path / "c.json")
    assert Calibration.read(tmp_path / "c.json") == calibration_of()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["categories"]["cup"].update(score_threshold=0.3),
        lambda content: content["categories"]["cup"].update(map_threshold=9.0),
        lambda content: content["categories"]["cup"].update(n=5),
        lambda content: content["categories"]["cup"]["scores"].reverse(),
        lambda content: content["categories"]["cup"]["maxima"].pop(),
        lambda content: content["categories"]["cup"].update(alpha=0.01),
        lambda content: content["categories"]["cup"].update(alpha=0),
        lambda content: content["categories"]["cup"].pop("maxima"),
        lambda content: content.update(format=2),
        lambda content: content.pop("belongs_to"),
    ],
)
def test_a_file_that_was_changed_is_refused(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    calibration_of().write(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"c\.json"):
        Calibration.read(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}'])
def test_a_file_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UserError, match=r"c\.json"):
        Calibration.read(tmp_path / "c.json")


def test_other_settings_and_categories_are_named() -> None:
    calibration = calibration_of()
    with pytest.raises(UserError, match=r"other settings: model\.sigma 4, here 8; tile null, here 518; "):
        Decisions.from_calibration(calibration, {"tile": 518, "model": {"sigma": 8}}, ["cup"])
    with pytest.raises(UserError, match="is of cup, but not of mug"):
        Decisions.from_calibration(calibration, calibration.belongs_to, ["cup", "mug"])


@pytest.fixture
def calibrated(cli: Cli, golden_a: Golden, tmp_path: Path) -> tuple[list[str], Finished, Path]:
    """Options, a calibration on nine images, and labelled images."""
    draw(tmp_path / "all" / "good", 7)
    draw(tmp_path / "all" / "bad", 5)
    options = [*golden_backbone(golden_a), "test_data.batch_size=4"]
    good = draw(tmp_path / "calibration_images", 9)
    made = cli.ok("calibrate", *options, f"source={good}", "category=cup", "max_false_alarms=0.4", name="calibration")
    return options, made, tmp_path / "all"


def test_the_command_writes_the_thresholds_of_its_scores(calibrated: tuple[list[str], Finished, Path]) -> None:
    _, made, _ = calibrated
    one = Calibration.read(made.folder / "calibration.json").categories["cup"]
    assert one.scores == sorted(float(row["single_score"]) for row in made.predictions)
    assert one.maxima == sorted(float(row["map_highest"]) for row in made.predictions)
    assert one.score_threshold == one.scores[5]  # ceil(10 * 0.6) = 6th of 9
    assert f"cup: anomalous above {one.score_threshold:.4g}" in made.out


def test_predictions_are_decided_on(cli: Cli, calibrated: tuple[list[str], Finished, Path]) -> None:
    options, made, images = calibrated
    file = made.folder / "calibration.json"
    one = Calibration.read(file).categories["cup"]
    done = cli.ok("predict", *options, f"source={images}", "category=cup", f"threshold={file}", name="decided")
    for row in done.predictions:
        score = float(row["single_score"])
        assert row["is_anomalous"] == str(int(score > one.score_threshold))
        assert float(row["p_value"]) == (1 + sum(good >= score for good in one.scores)) / 10
    number = cli.ok("predict", *options, f"source={images}", "category=cup", "threshold=0.5", name="number")
    assert {row["p_value"] for row in number.predictions} == {""}
    assert all(row["is_anomalous"] == str(int(float(row["single_score"]) > 0.5)) for row in number.predictions)
    assert not (number.folder / "regions.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["model.smoothing_sigma=3"], "model.smoothing_sigma 8, here 3"),
        (["model.representative=mean"], "model.representative"),
        (["prompts.normal=['good {}']"], "prompts.normal"),
        (["tile=32"], "overlap null, here 0.2; tile null, here 32"),
        (["test_data.bits=12"], "bits null, here 12"),
        (["test_data.image_size=48"], "image_size 80, here 48"),
        (["trainer.precision=bf16-mixed"], "precision 32-true, here bf16-mixed"),
        (["data@test_data=visa"], "prompt_set"),
        (["category=mug"], "is of cup, but not of mug"),
    ],
)
def test_it_counts_for_its_settings_only(
    cli: Cli, calibrated: tuple[list[str], Finished, Path], changed: list[str], named: str
) -> None:
    options, made, images = calibrated
    file = made.folder / "calibration.json"
    error = cli.error("predict", *options, f"source={images}", "category=cup", f"threshold={file}", *changed)
    assert named in error


@pytest.mark.slow
def test_rates_of_a_test_are_those_of_counting(cli: Cli, calibrated: tuple[list[str], Finished, Path]) -> None:
    options, made, images = calibrated
    folder = ["data@test_data=folder", f"test_data.root={images}", "test_data.category=cup"]
    labelled = [*folder, "test_data.normal_dir=good", "test_data.anomalous_dir=bad"]
    threshold = [f"threshold={made.folder / 'calibration.json'}"]
    limit = Calibration.read(made.folder / "calibration.json").categories["cup"].score_threshold
    whole = cli.ok("eval", *options, *labelled, *threshold, name="whole")
    found = whole.metrics["categories"]["cup"]
    scores = {
        label: [float(row["single_score"]) for row in whole.predictions if row["label"] == label] for label in "01"
    }
    assert found["false_alarms"] == np.mean([score > limit for score in scores["0"]])
    assert found["escapes"] == np.mean([score <= limit for score in scores["1"]])
    assert 0 < found["false_alarms"] + found["escapes"] < 2
    assert whole.metrics["mean"]["escapes"] == found["escapes"]
    assert "escapes" in whole.out
    parts = [
        cli.ok("eval", *options, *labelled, *threshold, f"test_data.shard={n}/2", name=str(n)).folder for n in (1, 2)
    ]
    merge(parts, whole.folder.parent / "merged")
    assert (whole.folder.parent / "merged" / "metrics.json").read_bytes() == (
        whole.folder / "metrics.json"
    ).read_bytes()


def test_too_few_images_are_refused_before_anything_is_computed(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    good = draw(tmp_path / "good", 5)
    options = [*golden_backbone(golden_a), f"source={good}", "category=cup"]
    message = cli.error("calibrate", *options)
    assert message == (
        "max_false_alarms=0.01 takes 99 images without defects, but there are 5 of cup; add images, or promise 0.167 "
        "or more"
    )
    assert not (tmp_path / "run" / "predictions.csv").exists()
    assert "must be above 0 and below 1" in cli.error("calibrate", *options, "max_false_alarms=0")
    assert "threshold is what src.calibrate finds" in cli.error("calibrate", *options, "threshold=0.5")
    assert "there is no file" in cli.error("predict", *options, "threshold=/nowhere/c.json")
    assert "finite number" in cli.error("predict", *options, "threshold=nan")
