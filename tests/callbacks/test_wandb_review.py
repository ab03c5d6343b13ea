"""What a run leaves for W&B, read back from its records by W&B's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import wandb

from datamodules.errors import UserError
from src.callbacks import wandb_review
from src.run.merge import merge
from tests.cli import NO_REPORT, Cli, Finished, golden_backbone
from tests.golden_reference import Golden

pytestmark = pytest.mark.slow

QUICK = ["prompts.templates=['a photo of a {}.']", "model.representative=mean"]
OFFLINE = ["logger=wandb", "logger.wandb.offline=true"]
TRAIN = ["+exp=sdp_plus_mvtec", "data@train_data=mvtec", "train_data.categories=[pcb1]", "train_data.num_workers=0"]


class Logged(NamedTuple):
    """A run of W&B, from its records.

    Attributes:
        run: name, group, job type, tags, id, project.
        config: keys and values.
        summary: last value of each key.
        artifacts: type and name -> names of files.
        history: all keys that were ever logged.
    """

    run: dict[str, Any]
    config: dict[str, Any]
    summary: dict[str, Any]
    artifacts: dict[tuple[str, str], list[str]]
    history: set[str]


def read_all(folder: Path) -> list[Logged]:
    return [read(path) for path in sorted(folder.glob("wandb/offline-run-*"))]


def read(folder: Path) -> Logged:
    reader = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(reader, capture_output=True, text=True, check=True)
    logged = Logged({}, {}, {}, {}, set())
    for line in done.stdout.splitlines():
        record = json.loads(line)
        kind, content = record["type"], record.get(record["type"], {})
        if kind == "run":
            logged.run.update(content)
        if kind == "config":
            logged.config.update(content["update"])
        if kind == "summary":
            logged.summary.update(content["update"])
        if kind == "history":
            logged.history.update(content["item"])
        if kind == "artifact":
            files = [entry["path"] for entry in content["manifest"]["contents"]]
            logged.artifacts[content["type"], content["name"]] = files
    return logged


@pytest.fixture(scope="module")
def data(golden_a: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_a.write_mvtec(tmp_path_factory.mktemp("data") / "mvtec").parent


@pytest.fixture(scope="module")
def options(golden_a: Golden, data: Path) -> list[str]:
    return [*golden_backbone(golden_a), *QUICK, f"paths.data_dir={data}"]


@pytest.fixture(scope="module")
def shown(options: list[str]) -> list[str]:
    """The options, with a page and W&B; the golden categories are VisA's, so of MVTec none is published."""
    upload = "callbacks.wandb_review.upload_images=true"
    return [*(option for option in options if option != NO_REPORT), *OFFLINE, upload]


@pytest.fixture(scope="module")
def module_cli(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield Cli(patch, None, tmp_path_factory.mktemp("wandb"))


@pytest.fixture(scope="module")
def trained(module_cli: Cli, shown: list[str]) -> tuple[Finished, Logged]:
    options = [*TRAIN, *shown, "test_data.categories=[candle]", "trainer.max_epochs=2"]
    run = module_cli.ok("train", *options, name="trained")
    [logged] = read_all(run.folder)
    return run, logged


def test_a_training_says_what_it_was_and_gave(trained: tuple[Finished, Logged]) -> None:
    run, logged = trained
    assert logged.run["display_name"].startswith("sdp_plus_mvtec ")
    assert "test_data.categories=[candle]" in logged.run["display_name"]
    assert (logged.run["run_group"], logged.run["job_type"]) == ("sdp_plus_mvtec", "train")
    assert logged.run["tags"] == ["sdp_plus", "mvtec", "vit_b_16_plus_240", "trained on mvtec"]
    assert logged.run["run_id"] == run.provenance["wandb"]["id"]
    assert logged.config["protocol"] == run.provenance["protocol"]["line"]
    known = logged.config["provenance"]
    assert known["data"]["test"]["sha256"] == run.provenance["data"]["test"]["sha256"]
    assert known["backbone"]["sha256"] == run.provenance["backbone"]["sha256"]
    assert logged.config["model"]["feature_tap"] == "reference"
    assert "lr-Adam" in logged.history


def test_every_figure_is_a_scalar_of_the_summary(trained: tuple[Finished, Logged]) -> None:
    run, logged = trained
    for name, value in run.metrics["mean"].items():
        assert logged.summary[f"test/{name}"] == pytest.approx(value)
    for category, metrics in run.metrics["categories"].items():
        for name, value in metrics.items():
            assert logged.summary[f"test/{category}/{name}"] == pytest.approx(value)
    assert "test/candle/pixel_F1Max_threshold" in logged.summary


def test_curves_histograms_table_and_cases_are_there(trained: tuple[Finished, Logged]) -> None:
    run, logged = trained
    keys = {key.split(".")[0] for key in logged.history}
    for level in ("image", "single", "pixel"):
        assert {f"curves/{level} ROC_table", f"curves/{level} precision-recall_table"} <= keys
    assert "curves/pixel PRO_table" in keys
    assert {"scores/candle/normal", "scores/candle/anomalous", "test/categories", "heat maps/candle"} <= keys
    captions = logged.summary["cases/candle.captions"]
    assert len(captions) == 3
    assert any("score" in caption and "by threshold" in caption for caption in captions)
    assert all(set(masks) == {"ground_truth", "predicted"} for masks in logged.summary["cases/candle.all_masks"])
    uploaded = run.provenance["wandb"]["uploaded"]
    assert {"3 images of candle", "report.html", "curves/pixel PRO"} <= set(uploaded)


def test_a_chart_holds_the_points_of_all_categories(trained: tuple[Finished, Logged]) -> None:
    run, _ = trained
    [path] = run.folder.glob("wandb/offline-run-*/files/media/table/curves/pixel PRO_table*.json")
    table = json.loads(path.read_text())
    points = json.loads((run.folder / "curves.json").read_text())["candle"]["pixel"]
    assert table["columns"] == ["x", "y", "category"]
    exact = set(zip(points["fpr"], points["pro"], strict=True))
    assert {(x, y) for x, y, _ in table["data"]} <= exact
    assert {category for _, _, category in table["data"]} == {"candle"}
    assert len(table["data"]) <= 100


def test_what_it_left_are_artifacts(trained: tuple[Finished, Logged]) -> None:
    run, logged = trained
    [weights] = run.folder.glob("*.safetensors")
    files = {kind: names for (kind, _), names in logged.artifacts.items()}
    assert files["model"] == [weights.name]
    assert weights.name in run.provenance["wandb"]["uploaded"]
    assert sorted(files["results"]) == ["curves.json", "metrics.json", "predictions.csv", "report.html"]


def test_an_evaluation_of_its_weights_is_of_the_same_experiment(
    trained: tuple[Finished, Logged], cli: Cli, shown: list[str]
) -> None:
    [weights] = trained[0].folder.glob("*.safetensors")
    options = [
        "+exp=sdp_plus_mvtec",
        *shown,
        "test_data.categories=[candle]",
        f"ckpt_path={weights}",
        "allow_leakage=true",
    ]
    run = cli.ok("eval", *options)
    [logged] = read_all(run.folder)
    assert (logged.run["run_group"], logged.run["job_type"]) == ("sdp_plus_mvtec", "eval")
    assert "trained on mvtec" in logged.run["tags"]
    assert logged.config["provenance"]["checkpoint"]["sha256"] == run.provenance["checkpoint"]["sha256"]
    assert logged.summary["test/candle/pixel_AP"] == pytest.approx(run.metrics["categories"]["candle"]["pixel_AP"])


def test_images_of_ones_own_leave_the_machine_on_request_only(cli: Cli, shown: list[str], data: Path) -> None:
    own = [f"test_data.root={data / 'mvtec' / 'candle' / 'test'}", "test_data.category=candle"]
    quiet = [option for option in shown if "upload_images" not in option]
    run = cli.ok("predict", "+exp=sdp_mvtec", *quiet, *own, name="kept")
    [logged] = read_all(run.folder)
    assert not [key for key in logged.history if key.startswith(("cases", "heat maps"))]
    assert not list(run.folder.glob("wandb/offline-run-*/files/media/images/**/*.*"))
    assert [files for (kind, _), files in logged.artifacts.items() if kind == "results"] == [["predictions.csv"]]
    asked = cli.ok("predict", "+exp=sdp_mvtec", *shown, *own, name="asked")
    [logged] = read_all(asked.folder)
    assert logged.run["job_type"] == "predict"
    assert len(logged.summary["cases/candle.captions"]) == 3
    assert "3 images of candle" in asked.provenance["wandb"]["uploaded"]


def test_no_more_images_than_asked_for(cli: Cli, shown: list[str]) -> None:
    few = [*shown, "callbacks.wandb_review.images_per_category=1"]
    run = cli.ok("eval", "+exp=sdp_mvtec", *few)
    [logged] = read_all(run.folder)
    assert [len(logged.summary[f"cases/{name}.captions"]) for name in ("candle", "pcb1")] == [1, 1]


def test_a_sweep_is_one_group_of_a_run_a_trial(cli: Cli, shown: list[str]) -> None:
    study = cli.folder / "study"
    seeds = ["-m", "+exp=sdp_mvtec", *shown, "seed=1,2,3", f"paths.output_dir={study}"]
    cli.ok("eval", *seeds)
    logged = [one for number in range(3) for one in read_all(study / str(number))]
    assert len(logged) == 3
    assert len({one.run["run_id"] for one in logged}) == 3
    assert {one.run["run_group"] for one in logged} == {f"{cli.folder.name}/study"}
    names = [one.run["display_name"] for one in logged]
    assert all(name.startswith("sdp_mvtec ") for name in names)
    assert [name.rpartition(" ")[2] for name in names] == ["seed=1", "seed=2", "seed=3"]
    assert all("test/pixel_AP" in one.summary for one in logged)


def test_a_merged_evaluation_is_one_run(cli: Cli, shown: list[str], tmp_path: Path) -> None:
    few = [*shown, "test_data.batch_size=2"]
    parts = [cli.ok("eval", "+exp=sdp_mvtec", *few, f"test_data.shard={n}/2", name=str(n)).folder for n in (1, 2)]
    assert not [path for part in parts for path in part.glob("wandb/*")]
    merge(parts, tmp_path / "merged")
    [logged] = read_all(tmp_path / "merged")
    metrics = json.loads((tmp_path / "merged" / "metrics.json").read_text())
    assert logged.summary["test/pcb1/pixel_AP"] == pytest.approx(metrics["categories"]["pcb1"]["pixel_AP"])
    assert (logged.run["run_group"], logged.run["job_type"]) == ("sdp_mvtec", "eval")
    assert "cases/pcb1.captions" in logged.summary
    told = json.loads((tmp_path / "merged" / "provenance.json").read_text())["wandb"]
    assert told["id"] == logged.run["run_id"]
    assert "3 images of pcb1" in told["uploaded"]


def test_a_search_leaves_its_weights_without_a_test(cli: Cli, shown: list[str]) -> None:
    held_out = ["train_data.categories=[candle,pcb1]", "val_categories=[candle]", "select=pixel_AP", "test=false"]
    held_out += ["allow_leakage=true"]
    train = [option for option in TRAIN if "train_data.categories" not in option]
    run = cli.ok("train", *train, *shown, *held_out, "test_data.categories=[candle]", "trainer.max_epochs=1")
    [logged] = read_all(run.folder)
    [weights] = run.folder.glob("*.safetensors")
    assert [files for (kind, _), files in logged.artifacts.items() if kind == "model"] == [[weights.name]]
    assert logged.summary["selected/pixel_AP"] == pytest.approx(run.provenance["trained_weights"]["score"])
    assert run.provenance["wandb"]["uploaded"] == [weights.name]


def test_a_folder_with_a_published_name_is_ones_own(
    cli: Cli, shown: list[str], golden_a: Golden, tmp_path: Path
) -> None:
    golden_a.write_mvtec(tmp_path / "mine")
    (tmp_path / "mine" / "candle").rename(tmp_path / "mine" / "screw")
    quiet = [option for option in shown if "upload_images" not in option]
    own = [f"test_data.root={tmp_path / 'mine'}", "test_data.categories=[screw]"]
    run = cli.ok("eval", "+exp=sdp_mvtec", *quiet, *own)
    [logged] = read_all(run.folder)
    assert not [key for key in logged.history if key.startswith(("cases", "heat maps"))]
    assert "report.html" not in run.provenance["wandb"]["uploaded"]


def test_without_a_key_a_run_stays_here_and_says_how_to_send_it(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.warns(UserWarning, match="no API key .* wandb sync .*/run/wandb/offline-run-"):
        run = cli.ok("eval", "+exp=sdp_mvtec", *options, "logger=wandb")
    assert len(read_all(run.folder)) == 1


def test_without_a_network_a_run_stays_here(cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nothing listens
    with pytest.warns(UserWarning, match=r"127.0.0.1 can't be reached"):
        run = cli.ok("eval", "+exp=sdp_mvtec", *options, "logger=wandb")
    assert len(read_all(run.folder)) == 1


def test_the_review_can_be_switched_off(cli: Cli, options: list[str]) -> None:
    run = cli.ok("eval", "+exp=sdp_mvtec", *options, *OFFLINE, "callbacks.wandb_review=null")
    [logged] = read_all(run.folder)
    assert not [key for key in logged.history if key.startswith(("cases", "curves", "scores"))]
    assert logged.summary["test/pixel_AP"] == pytest.approx(run.metrics["mean"]["pixel_AP"])


class Api:
    """What of a run of W&B lineage needs, with a server that knows some artifacts."""

    offline = False

    def __init__(self, known: set[str]) -> None:
        self.known = known
        self.used: list[Any] = []

    def use_artifact(self, artifact: Any) -> None:
        if isinstance(artifact, str) and artifact not in self.known:
            raise ValueError(f"artifact {artifact} not found")
        self.used.append(artifact)


def test_an_evaluation_descends_from_the_weights_it_used(
    trained: tuple[Finished, Logged], cli: Cli, options: list[str]
) -> None:
    [weights] = trained[0].folder.glob("*.safetensors")
    [name] = [name for kind, name in trained[1].artifacts if kind == "model"]
    evaluated = ["+exp=sdp_plus_mvtec", *options, "test_data.categories=[candle]", f"ckpt_path={weights}"]
    run = cli.ok("eval", *evaluated, "allow_leakage=true")
    known = Api({f"{name}:latest"})
    wandb_review.use_checkpoint(known, run.folder)
    assert known.used == [f"{name}:latest"]
    with pytest.raises(UserError, match="among the weights that runs have logged"):
        wandb_review.use_checkpoint(Api(set()), run.folder)


def test_a_review_that_fails_is_one_line_and_no_lost_run(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(wandb_review, "review", fail)
    with pytest.warns(UserWarning, match="no review in W&B: the network is gone"):
        run = cli.ok("eval", "+exp=sdp_mvtec", *options, *OFFLINE)
    assert run.provenance["finished"]
    assert run.metrics["mean"]


def test_what_could_not_be_sent_loses_no_run(cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "finish", fail)
        with pytest.warns(UserWarning, match="W&B did not take everything: the network is gone"):
            run = cli.ok("eval", "+exp=sdp_mvtec", *options, *OFFLINE)
    wandb.finish()
    assert run.provenance["finished"]
    assert run.metrics["mean"]


def test_the_demo_is_shown_with_its_images(cli: Cli, demo: list[str]) -> None:
    quiet = [*(option for option in demo if option != NO_REPORT), *OFFLINE]
    small = ["train_data.categories=[fabric]", "test_data.categories=[coin]", "trainer.max_epochs=1"]
    run = cli.ok("train", "+exp=sdp_plus_demo", *quiet, *small)
    [logged] = read_all(run.folder)
    assert (logged.run["run_group"], logged.run["job_type"]) == ("sdp_plus_demo", "train")
    assert logged.run["tags"] == ["sdp_plus", "demo_unseen", "demo", "trained on demo"]
    assert len(logged.summary["cases/coin.captions"]) == 8
    assert logged.summary["test/coin/pixel_AUPRO"] == pytest.approx(run.metrics["categories"]["coin"]["pixel_AUPRO"])
    assert {"8 images of coin", "report.html"} <= set(run.provenance["wandb"]["uploaded"])


def test_trials_side_by_side_are_runs_of_one_group(cli: Cli, shown: list[str]) -> None:
    study = cli.folder / "study"
    side_by_side = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"paths.output_dir={study}"]
    cli.ok("eval", "-m", "+exp=sdp_mvtec", *shown, "seed=1,2", *side_by_side)
    logged = [one for number in range(2) for one in read_all(study / str(number))]
    assert len({one.run["run_id"] for one in logged}) == 2
    assert {one.run["run_group"] for one in logged} == {f"{cli.folder.name}/study"}
    assert all("cases/pcb1.captions" in one.summary for one in logged)
