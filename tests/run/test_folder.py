"""A run's folder: new, unfinished, finished or broken."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.errors import UserError
from src.run import folder as run_folder
from src.run.folder import RunFolder
from tests.records import CONFIG, DESCRIBED, data_of


def config(**changes: Any) -> dict[str, Any]:
    """CONFIG with some dotted keys, written with `__`, changed."""
    changed = deepcopy(CONFIG)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = changed
        for parent in parents:
            node = node[parent]
        node[last] = value
    return changed


def begin(path: Path, **entries: Any) -> RunFolder:
    """A run that has said what it is."""
    folder = RunFolder(path, config())
    folder.describe(**DESCRIBED | entries)
    folder.write()
    return folder


def leave_unfinished(path: Path, checkpoint: bool = True) -> dict[str, Any]:
    """A run that was interrupted; its provenance."""
    begin(path, command="python -m src.train")
    if checkpoint:
        (path / "checkpoints").mkdir()
        torch.save({"epoch": 1}, path / "checkpoints" / "last.ckpt")
    return read(path)


def read(path: Path) -> dict[str, Any]:
    content = json.loads((path / "provenance.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_folder(exists: bool, tmp_path: Path) -> None:
    path = tmp_path if exists else tmp_path / "a" / "b"
    folder = RunFolder(path, config())
    assert folder.checkpoint_to_resume is None
    folder.write(seed=42)
    content = read(path)
    assert (content["seed"], content["resumed"], content["finished"]) == (42, [], None)
    assert content["config"] == config()


def test_nothing_is_written_before_it_is_asked_for(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new", config())
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_without_a_run_is_refused(tmp_path: Path) -> None:
    leave_unfinished(tmp_path)
    (tmp_path / "provenance.json").unlink()
    with pytest.raises(UserError, match="unknown what run it belongs to"):
        RunFolder(tmp_path, config())


def test_an_unfinished_run_is_resumed(tmp_path: Path) -> None:
    earlier = leave_unfinished(tmp_path)
    folder = RunFolder(tmp_path, config())
    assert folder.checkpoint_to_resume == tmp_path / "checkpoints" / "last.ckpt"
    folder.describe(**DESCRIBED | {"command": "python -m src.train again"})
    folder.write()
    again = RunFolder(tmp_path, config())
    again.describe(**DESCRIBED | {"command": "python -m src.train"})
    assert again.provenance["started"] == earlier["started"]
    assert again.provenance["command"] == earlier["command"]
    assert [part["command"] for part in again.provenance["resumed"]] == [
        "python -m src.train again",
        "python -m src.train",
    ]


def test_a_resumed_run_needs_its_data_and_weights(tmp_path: Path) -> None:
    data, backbone = DESCRIBED["data"], DESCRIBED["backbone"]
    begin(tmp_path)
    RunFolder(tmp_path, config()).describe(data=data, backbone=backbone)
    with pytest.raises(UserError, match=r"other content of data\.test"):
        RunFolder(tmp_path, config()).describe(data={"test": data_of("c")}, backbone=backbone)
    with pytest.raises(UserError, match="other content of backbone"):
        RunFolder(tmp_path, config()).describe(data=data, backbone={"sha256": "c"})


def test_a_resumed_test_needs_its_checkpoint(tmp_path: Path) -> None:
    begin(tmp_path, checkpoint={"file": "a.ckpt", "sha256": "a"})
    begin(tmp_path, checkpoint={"file": "a.ckpt", "sha256": "a"})
    with pytest.raises(UserError, match="other content of checkpoint"):
        begin(tmp_path, checkpoint={"file": "a.ckpt", "sha256": "b"})


def test_an_unfinished_run_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    leave_unfinished(tmp_path, checkpoint=False)
    folder = RunFolder(tmp_path, config())
    assert folder.checkpoint_to_resume is None
    assert folder.is_resumed


@pytest.mark.parametrize(
    "changes",
    [
        {"paths__output_dir": "elsewhere"},
        {"logger": {"wandb": {"project": "x"}}},
        {"callbacks": {"bar": {}}},
        {"save_maps": True},
        {"trainer__accelerator": "gpu", "trainer__devices": 2},
    ],
)
def test_how_and_where_may_change(changes: dict[str, Any], tmp_path: Path) -> None:
    leave_unfinished(tmp_path)
    assert RunFolder(tmp_path, config(**changes)).checkpoint_to_resume is not None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"model__smoothing_sigma": 4}, "model.smoothing_sigma"),
        ({"model__feature_layers": [3, 6]}, "model.feature_layers"),
        ({"model__new": 1}, "model.new"),
        ({"train_data": {"root": "data", "split": "train"}}, "train_data, train_data.split"),
        ({"trainer__max_epochs": 6}, "trainer.max_epochs"),
        ({"trainer__accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches"),
        ({"trainer__precision": "bf16-mixed", "backbone__name": "x"}, "backbone.name, trainer.precision"),
    ],
)
def test_another_configuration_is_refused_by_its_keys(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    before = leave_unfinished(tmp_path)
    with pytest.raises(UserError, match=rf"another configuration \(it differs in {named}\).*paths\.output_dir"):
        RunFolder(tmp_path, config(**changes))
    assert read(tmp_path) == before


@pytest.mark.parametrize("changes", [{}, {"seed": 1}])
def test_a_finished_run_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with begin(tmp_path).recorded("train", []):
        pass
    finished = read(tmp_path)["finished"]
    assert finished
    with pytest.raises(UserError, match=rf"{tmp_path} holds a finished run of .*paths\.output_dir") as caught:
        RunFolder(tmp_path, config(**changes))
    assert finished in str(caught.value)


def test_of_several_processes_all_refuse_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_unfinished(tmp_path)
    monkeypatch.setattr(run_folder, "is_first", lambda: False)
    assert not RunFolder(tmp_path, config(seed=1)).is_resumed  # the first compares
    monkeypatch.undo()
    with begin(tmp_path).recorded("train", []):
        pass
    monkeypatch.setattr(run_folder, "is_first", lambda: False)
    with pytest.raises(UserError, match="finished run"):
        RunFolder(tmp_path, config())


@pytest.mark.parametrize("content", ["", "{", '{"config": {"seed"', "\x00\xff"])
def test_a_broken_provenance_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{tmp_path}/provenance\.json is damaged: .*paths\.output_dir"):
        RunFolder(tmp_path, config())


@pytest.mark.parametrize("content", ["null", "[1]", '{"started": "yesterday"}', '{"config": {}}'])
def test_a_provenance_of_something_else_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(UserError, match=r"provenance\.json is damaged: .*; choose another paths\.output_dir"):
        RunFolder(tmp_path, config())


def test_a_value_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    folder = begin(tmp_path, score=0.5)
    with pytest.raises(ValueError, match="JSON"):
        folder.write(score=float("nan"))
    assert read(tmp_path)["score"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["provenance.json"]
