"""A recorded run is run again: equal, or told what differs."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from src import reproduce
from tests.cli import Cli, golden_backbone
from tests.golden_reference import Golden
from tests.records import CONFIG, PROVENANCE


@pytest.fixture(scope="session")
def data(golden_a: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_a.write_mvtec(tmp_path_factory.mktemp("reproduce") / "mvtec").parent


@pytest.fixture
def options(golden_a: Golden) -> list[str]:
    return [*golden_backbone(golden_a), "prompts.templates=['a photo of a {}.']", "model.representative=mean"]


@pytest.fixture
def here(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is repeated in this process: another takes 20 seconds to start."""

    def run(command: Sequence[str]) -> int:
        assert command[:2] == [sys.executable, "-m"]
        target = Path(command[4]).parent
        recorded = OmegaConf.load(next((target / "config").glob("*.yaml")))
        given = [*command[3:], f"paths.output_dir={target}", f"paths.cache_dir={recorded.paths.cache_dir}"]
        done = cli(command[2].removeprefix("src."), *given)
        print(done.out, done.err)
        return done.code

    monkeypatch.setattr(reproduce, "run", run)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["src/reproduce.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        reproduce.main()
    return int(stop.value.code or 0)


TRAIN = [
    "model=sdp_plus",
    "data@train_data=mvtec",
    "train_data.num_workers=0",
    "test_data.categories=[candle]",
    "train_data.categories=[pcb1]",
    "trainer.max_epochs=2",
]


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_training_is_reproduced_to_the_last_digit(
    cli: Cli,
    options: list[str],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    profiler = "+trainer.profiler=simple"
    first = cli.ok("train", *options, *TRAIN, profiler, f"paths.data_dir={data}", "seed=7", "logger=tensorboard")
    kept = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    assert call(monkeypatch, first.folder) == 0
    assert "figures are equal exactly" in capsys.readouterr().out
    again = first.folder.with_name("run-reproduced-1")
    # What the first run has kept is computed anew.
    served = json.loads((again / "provenance.json").read_text())["feature_cache"]
    assert {role: one["hits"] for role, one in served.items()} == {"train": 0, "test": 0}
    assert not (again / "cache").exists()
    assert (again / "metrics.json").read_bytes() == (first.folder / "metrics.json").read_bytes()
    assert json.loads((again / "provenance.json").read_text())["seed"] == 7
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == kept

    # The figures have to come from the second run, not from the first.
    provenance = json.loads((first.folder / "provenance.json").read_text())
    provenance["config"]["seed"] = 8
    (first.folder / "provenance.json").write_text(json.dumps(provenance))
    assert call(monkeypatch, first.folder) == 1
    out = capsys.readouterr().out
    assert "mean.pixel_AUROC: " in out
    assert "not reproduced" in out
    assert "nothing that is recorded differs" in out or "code: " in out
    assert first.folder.with_name("run-reproduced-2").is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_changed_data_is_named(
    cli: Cli,
    options: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    first = cli.ok("eval", "+exp=sdp_mvtec", *options, f"paths.data_dir={own}")
    images = sorted(own.rglob("candle/test/*/*.png"))
    shutil.copy(images[0], images[-1])
    assert call(monkeypatch, first.folder) == 1
    out = capsys.readouterr().out
    assert "differs: data: test data" in out
    assert "categories.candle." in out
    assert "weights" not in out


@pytest.mark.usefixtures("here")
def test_what_can_not_be_reproduced(
    cli: Cli,
    options: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def error(*arguments: object) -> str:
        assert call(monkeypatch, *arguments) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "expected one folder" in error()
    assert str(tmp_path / "nowhere") in error(tmp_path / "nowhere")
    category = data / "mvtec" / "candle"
    predicted = cli.ok("predict", *options, f"test_data.root={category}", "test_data.category=candle", name="predict")
    assert "no metrics to compare" in error(predicted.folder)
    unfinished = predicted.provenance | {"finished": None}
    (predicted.folder / "provenance.json").write_text(json.dumps(unfinished))
    assert "has not finished" in error(predicted.folder)
    (predicted.folder / "provenance.json").write_text("{")
    assert "provenance.json is damaged: " in error(predicted.folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "../../elsewhere"}, "kind: "),
        ({"kind": "cli"}, "kind: "),
        ({"config": CONFIG | {"hydra": {"searchpath": ["file:///tmp"]}}}, "keys that no run has: hydra"),
        ({"config": CONFIG | {"defaults": [{"/model": "sdp"}]}}, "keys that no run has: defaults"),
        ({"config": []}, "config: "),
        ({"config": CONFIG | {"paths": ["x"]}}, "config.paths: "),
    ],
)
def test_a_record_that_no_run_has_left_is_refused(
    change: dict[str, Any],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(PROVENANCE | change))
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"mean": {"pixel_AP": 0.5}, "categories": {}}))
    assert call(monkeypatch, tmp_path / "run") == 1
    assert f"{tmp_path}/run/provenance.json is damaged: " in (err := capsys.readouterr().err)
    assert told in err
    assert {path.name for path in tmp_path.rglob("*")} == {"run", "provenance.json", "metrics.json"}


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "a ${seed} b", "\\${seed}", "\\\\${seed}", "${a:${seed}}", "${", "\\", "'${seed}'", "?"]
)
def test_what_was_recorded_is_text_and_not_looked_up(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    changed = CONFIG | {"model": {"_target_": text, "list": [{"deep": text}]}}
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(PROVENANCE | {"config": changed}))
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"mean": {"pixel_AP": 0.5}, "categories": {}}))
    monkeypatch.setattr(reproduce, "run", lambda command: 1)
    assert call(monkeypatch, tmp_path / "run") == 1
    config = OmegaConf.load(tmp_path / "run-reproduced-1" / "config" / "eval.yaml")
    assert OmegaConf.to_container(config, resolve=False)["paths"]["output_dir"] == str(tmp_path / "run-reproduced-1")
    assert OmegaConf.to_container(config.model, resolve=True) == changed["model"]


def test_figures_that_the_run_has_not_written_are_refused(
    cli: Cli, options: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cli.ok("eval", "+exp=sdp_mvtec", *options, f"paths.data_dir={data}").folder
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace("0.", "0.1", 1))
    assert call(monkeypatch, folder) == 1
    assert capsys.readouterr().err == f"error: {folder}/metrics.json is damaged: it is not what the run has written\n"
    (folder / "metrics.json").unlink()
    assert call(monkeypatch, folder) == 1
    assert "metrics.json is damaged: the run has written it, but" in capsys.readouterr().err


def record() -> dict[str, Any]:
    return {
        "data": {"test": {"sha256": "a", "files": 3, "bytes": 30}},
        "backbone": {"file": "clip.pt", "sha256": "b"},
        "checkpoint": None,
        "code": {"commit": "c", "dirty": False},
        "packages": {"torch": "2.4", "numpy": "2.0"},
        "device": {"type": "cpu", "threads": 2},
    }


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("data", "test", "sha256"), "x", "data: test data"),
        (("data", "train"), {"sha256": "a", "files": 1, "bytes": 2}, "none -> 1 files of 2 bytes"),
        (("backbone", "sha256"), "x", "weights: backbone clip.pt, sha256 b -> x"),
        (("checkpoint",), {"file": "a.ckpt", "sha256": "x"}, "weights: checkpoint"),
        (("code", "commit"), "x", "code: commit c -> x"),
        (("code", "dirty"), True, "code: the second run had changes"),
        (("packages", "torch"), "2.5", "package: torch 2.4 -> 2.5"),
        (("device", "threads"), 1, "device: threads 2 -> 1"),
    ],
)
def test_each_difference_is_explained(path: Sequence[str], value: Any, expected: str) -> None:
    changed = copy.deepcopy(record())
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    lines = list(reproduce.explain(record(), changed))
    assert len(lines) == 1
    assert expected in lines[0]
    assert list(reproduce.explain(record(), record())) == []


def test_figures_are_compared_within_the_tolerance() -> None:
    before = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}
    after = {"a": 0.5 + 9e-7, "b": 0.5 - 2e-6, "c": float("nan"), "e": 0.1}
    assert [line.split(":")[0] for line in reproduce.compare(before, after, 1e-6)] == ["b", "c", "d", "e"]
    cpu, gpu = {"device": {"type": "cpu"}}, {"device": {"type": "cuda"}}
    assert reproduce.tolerance_of(cpu, cpu) == 1e-6
    assert reproduce.tolerance_of(cpu, gpu) > reproduce.tolerance_of(cpu, cpu)


@pytest.mark.slow
def test_a_fresh_process_reproduces(
    cli: Cli, options: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = cli.ok("eval", "+exp=sdp_mvtec", *options, f"paths.data_dir={data}")
    assert call(monkeypatch, first.folder) == 0
    assert "reproduced: " in capsys.readouterr().out
