"""Every baseline from the command line: equal to public code, in parts, under two processes, resumed, predicted."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from src.run.merge import merge
from tests.cli import Cli, Finished
from tests.golden_baselines import FEW_SHOT, METHODS, Bench, options_of, shots_of
from tests.test_own_images import stop_after
from tests.test_processes import run as run_alone


def maps_of(run: Finished) -> dict[str, np.ndarray]:
    """By the three digits of the file's name."""
    return {path.stem: np.load(path) for path in run.folder.glob("maps/**/*.npy")}


def scores_of(run: Finished, column: str) -> dict[str, float]:
    return {Path(row["image_path"]).stem: float(row[column]) for row in run.predictions}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "shots", "prefix", "score"),
    [
        ("winclip", 0, "zero_shot/", "score"),
        ("winclip_plus", 1, "few_shot_1/", "score"),
        ("winclip_plus", 2, "few_shot_2/", "score"),
        ("april_gan", 0, "zero_shot/", "score"),
        ("april_gan_few_shot", 2, "few_shot_2/", "score"),
        ("anomalyclip", 0, "", "prob"),
    ],
)
def test_maps_and_scores_are_those_of_public_code(
    cli: Cli, benches: dict[str, Bench], tmp_path: Path, method: str, shots: int, prefix: str, score: str
) -> None:
    bench, options = options_of(method, benches)
    references = []
    if shots:
        with (tmp_path / "references.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image_path", "category"])
            for name in bench.golden.classes:
                rows.writerows([bench.data / f"{name}/train/good/{i:03}.png", name] for i in range(shots))
        references = [f"references={tmp_path / 'references.csv'}"]
    done = cli.ok("eval", *options, "trainer=cpu", f"test_data.root={bench.data}", "save_maps=true", *references)
    maps, scores = maps_of(done), scores_of(done, "image_score")
    assert sorted(maps) == [f"{row:03}" for row in range(6)]
    for row in range(6):
        expected = bench.golden[f"{prefix}map"][row].numpy()
        np.testing.assert_allclose(maps[f"{row:03}"], expected, rtol=0, atol=1e-4)
        assert scores[f"{row:03}"] == pytest.approx(float(bench.golden[f"{prefix}{score}"][row]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_parts_resumed_and_predicted_are_the_whole(
    cli: Cli, benches: dict[str, Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    bench, options = options_of(method, benches)
    options += ["trainer=cpu", "test_data.batch_size=2"]
    tested = [*options, f"test_data.root={bench.data}", *shots_of(method)]
    whole = cli.ok("eval", *tested, name="whole")
    parts = [cli.ok("eval", *tested, f"test_data.shard={part}/2", name=f"part{part}").folder for part in (1, 2)]
    merge(parts, tmp_path / "merged")
    for name in ("predictions.csv", "metrics.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (whole.folder / name).read_bytes()

    category = bench.golden.classes[0]
    photos = [*options, f"source={bench.data / category / 'test'}", f"category={category}"]
    if method in FEW_SHOT:
        # The references of a draw in its order, so that their batch is the same to the last digit.
        drawn = whole.provenance["references"]["categories"][category]
        lines = [f"{bench.data / one['image_path']},{category}" for one in drawn]
        (tmp_path / "references.csv").write_text("\n".join(["image_path,category", *lines]))
        photos.append(f"references={tmp_path / 'references.csv'}")
    predicted = cli.ok("predict", *photos, name="predicted")
    expected = scores_of(whole, "single_score")
    found = scores_of(predicted, "single_score")
    assert len(found) == bench.golden.classes_of_images.count(category)
    for name, score in found.items():
        assert score == pytest.approx(expected[name], abs=1e-6)

    with monkeypatch.context() as patch:
        stop_after(patch, batches=1)
        stopped = cli("predict", *photos, name="stopped")
    assert stopped.code == 1
    again = cli.ok("predict", *photos, name="stopped")
    assert (again.folder / "predictions.csv").read_bytes() == (predicted.folder / "predictions.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["winclip_plus", "april_gan_few_shot", "anomalyclip"])
def test_two_processes_test_as_one_does(cli: Cli, benches: dict[str, Bench], tmp_path: Path, method: str) -> None:
    """Of each kind of contract one: windows and references, trained projections, learned prompts."""
    bench, options = options_of(method, benches)
    tested = [*options, f"test_data.root={bench.data}", "test_data.batch_size=2", *shots_of(method)]
    one = cli.ok("eval", *tested, "trainer=cpu", name="one")
    run_alone("eval", tmp_path / "two", *tested, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    two = Finished(0, "", "", tmp_path / "two")
    for column in ("image_score", "single_score"):
        assert scores_of(two, column) == pytest.approx(scores_of(one, column), abs=1e-6)
    assert two.metrics["mean"] == pytest.approx(one.metrics["mean"], abs=1e-6)
