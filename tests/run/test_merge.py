"""Parts of an evaluation, joined, are the evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from datamodules.errors import UserError
from src.run.merge import merge
from tests.cli import NO_REPORT, Cli
from tests.report.pages import facts_of, pictures_of

pytestmark = pytest.mark.slow

PARTS = 7
OPTIONS = ["+exp=sdp_demo", "test_data.categories=[coin,nut]", "test_data.batch_size=5"]


def shown(options: list[str]) -> list[str]:
    """The options, with a page and overlays."""
    return [*(option for option in options if option != NO_REPORT), "save_overlays=true"]


def overlays_of(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("overlays/**/*.png")}
    assert len(files) > 80
    return files


@pytest.fixture(scope="module")
def parts(demo: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        cli = Cli(patch, None, tmp_path_factory.mktemp("parts"))
        runs = [
            cli.ok("eval", *OPTIONS, *shown(demo), f"test_data.shard={number}/{PARTS}", name=str(number))
            for number in range(1, PARTS + 1)
        ]
    return [run.folder for run in runs]


def test_joined_parts_are_one_run_to_the_last_digit(
    parts: list[Path], cli: Cli, demo: list[str], tmp_path: Path
) -> None:
    whole = cli.ok("eval", *OPTIONS, *shown(demo)).folder
    merge([*parts[3:], *parts[:3]], tmp_path / "merged")
    for name in ("metrics.json", "predictions.csv", "curves.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (whole / name).read_bytes()
    assert not (parts[0] / "metrics.json").exists()
    one, joined = (json.loads((folder / "provenance.json").read_text()) for folder in (whole, tmp_path / "merged"))
    assert joined["protocol"] == one["protocol"]
    assert joined["config"]["test_data"] == one["config"]["test_data"]
    assert joined["merged_from"] == [str(part) for part in parts]
    assert facts_of(tmp_path / "merged") == facts_of(whole)
    assert pictures_of(tmp_path / "merged") == pictures_of(whole)
    assert len(pictures_of(whole)) == 96
    assert overlays_of(tmp_path / "merged") == overlays_of(whole)
    assert not (parts[0] / "report.html").exists()
    assert not (whole / "cases.sqlite").exists()


def test_joined_predictions_are_those_of_one_run(cli: Cli, demo: list[str], demo_data: Path, tmp_path: Path) -> None:
    [images] = demo_data.glob("demo/*/coin/test")
    own = [f"test_data.root={images}", "test_data.category=coin"]
    options = ["+exp=sdp_demo", *shown(demo), *own]
    whole = cli.ok("predict", *options, name="whole").folder
    folders = [cli.ok("predict", *options, f"test_data.shard={n}/3", name=str(n)).folder for n in (1, 2, 3)]
    merge(folders, tmp_path / "merged")
    assert (tmp_path / "merged" / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    assert not (tmp_path / "merged" / "metrics.json").exists()
    assert pictures_of(tmp_path / "merged") == pictures_of(whole)


def test_joined_parts_remember_that_their_training_was_cut_short(cli: Cli, demo: list[str], tmp_path: Path) -> None:
    short = ["+trainer.limit_train_batches=1", "trainer.max_epochs=1", "test=false"]
    trained = cli.ok("train", "+exp=sdp_plus_demo", *demo, *short, name="trained").folder
    options = ["+exp=sdp_plus_demo", *demo, f"ckpt_path={next(trained.glob('*.safetensors'))}"]
    whole = cli.ok("eval", *options, name="whole").provenance["protocol"]
    folders = [cli.ok("eval", *options, f"test_data.shard={number}/2", name=str(number)).folder for number in (1, 2)]
    merge(folders, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "provenance.json").read_text())["protocol"] == whole
    assert "limit_train_batches=1) -> test" in whole["line"]


def test_parts_that_went_over_to_histograms_can_be_joined(cli: Cli, demo: list[str], tmp_path: Path) -> None:
    small = [*OPTIONS, *demo, "metrics_memory_gb=0.001"]
    whole = cli.ok("eval", *small, name="whole").folder
    folders = [cli.ok("eval", *small, f"test_data.shard={number}/2", name=str(number)).folder for number in (1, 2)]
    merge(folders, tmp_path / "merged")
    assert (tmp_path / "merged" / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    assert "pixel_AUPRO_error" in (whole / "metrics.json").read_text()


def test_a_missing_or_doubled_part_is_refused(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part 3, 5 was given"):
        merge([parts[i - 1] for i in (1, 2, 4, 6, 7)], tmp_path / "merged")
    with pytest.raises(UserError, match="part 2 was given more than once"):
        merge([*parts, parts[1]], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("config", "model", "smoothing_sigma"), 2, "options"),
        (("data", "test", "sha256"), "0", "the data"),
        (("backbone", "sha256"), "0", "the backbone's weights"),
        (("packages", "torch"), "1.0", "packages"),
        (("device", "precision"), "bf16-mixed", "precision"),
        (("kind",), "predict", "the command"),
        (("config", "test_data", "shard"), "7/8", "the number of parts (7 and 8)"),
    ],
)
def test_parts_of_different_runs_are_refused(
    parts: list[Path], tmp_path: Path, path: tuple[str, ...], value: object, told: str
) -> None:
    other = shutil.copytree(parts[6], tmp_path / "other")
    provenance = json.loads((other / "provenance.json").read_text())
    node = provenance
    for key in path[:-1]:
        node = node[key]
    assert node[path[-1]] != value
    node[path[-1]] = value
    (other / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(UserError, match="different runs") as caught:
        merge([*parts[:6], other], tmp_path / "merged")
    assert told in str(caught.value)


def test_a_part_that_was_cut_short_is_refused(parts: list[Path], cli: Cli, demo: list[str], tmp_path: Path) -> None:
    shard = f"test_data.shard=7/{PARTS}"
    short = cli.ok("eval", *OPTIONS, *demo, shard, "+trainer.limit_test_batches=1").folder
    with pytest.raises(UserError, match=r"part 7/7, which was cut short by limit_test_batches=1"):
        merge([*parts[:6], short], tmp_path / "merged")


def test_images_that_are_missing_in_a_part_are_noticed(parts: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(parts[6], tmp_path / "other")
    lines = (other / "predictions.csv").read_text().splitlines(keepends=True)
    (other / "predictions.csv").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"other/predictions\.csv is damaged: it is not what the run has written"):
        merge([*parts[:6], other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_is_no_part_is_refused(cli: Cli, demo: list[str], parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run"):
        merge([tmp_path], tmp_path / "merged")
    assert "at most 20 parts" in cli.error("eval", *OPTIONS, *demo, "test_data.shard=1/21")
    own = ["+metrics.MSE._target_=torchmetrics.MeanSquaredError", "+metrics.MSE.level=pixel"]
    assert "can't be joined from parts" in cli.error("eval", *OPTIONS, *demo, "test_data.shard=1/2", *own)
    assert "i/n" in cli.error("eval", *OPTIONS, *demo, "test_data.shard=8/7")
    message = cli.error("train", "+exp=sdp_plus_demo", *demo, "test_data.shard=1/2")
    assert "src.eval" in message


def test_parts_that_a_sweep_runs_make_a_page_when_joined(cli: Cli, demo: list[str], tmp_path: Path) -> None:
    study = tmp_path / "study"
    shards = ["-m", "+exp=sdp_demo", *shown(demo), "test_data.categories=[coin]", "test_data.shard=1/2,2/2"]
    cli.ok("eval", *shards, f"paths.output_dir={study}")
    merge([study / "0", study / "1"], tmp_path / "merged")
    assert len(pictures_of(tmp_path / "merged")) == 48
    assert not list(study.rglob("report.html"))
