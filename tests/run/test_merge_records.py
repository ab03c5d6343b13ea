"""State, predictions and provenance of a part have to belong together: parts made by hand, and then mixed up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from datamodules.errors import UserError
from src.metrics import BenchmarkMetrics
from src.run.merge import merge
from src.run.metric_state import write_state
from src.run.predictions import Prediction, write_predictions
from src.run.results import PREDICTIONS_FILE, PROVENANCE_FILE, STATE_FILE, hashes_of
from tests.records import CONFIG, DESCRIBED, PROVENANCE

CATEGORIES = {"candle": 4, "nut": 4}
PARTS = 4
TERMS = ["cls_score", "map_max"]


def write_part(folder: Path, number: int) -> Path:
    """The `number`-th of four parts of eight images, two each."""
    drawn = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)).tolist()
    categories = [name for name, images in CATEGORIES.items() for _ in range(images)]
    rows = [
        Prediction(f"{i}.png", categories[i], i % 2, dict(zip(TERMS, drawn[i][:2], strict=True)), drawn[i][2])
        for i in range(2 * number - 2, 2 * number)
    ]
    metrics = BenchmarkMetrics(list(CATEGORIES), TERMS, "min_max_sum")
    label = torch.tensor([row.label for row in rows])
    mask = torch.zeros(2, 3, 3)
    mask[1, 1, :2] = 1
    terms = {name: torch.tensor([row.terms[name] for row in rows]) for name in TERMS}
    single_score = torch.tensor([row.single_score for row in rows])
    maps = terms["map_max"][:, None, None] * (mask + 0.5)
    metrics.update([row.category for row in rows], terms, single_score, label, maps, mask)
    folder.mkdir(parents=True)
    write_state(metrics, folder / STATE_FILE)
    write_predictions(folder / PREDICTIONS_FILE, rows, TERMS, None)
    record(folder, number)
    return folder


def record(folder: Path, number: int, kind: str = "eval") -> None:
    """Write a provenance that fits the files that are there."""
    counts = {name: {"images": n, "normal": n // 2, "anomalous": n // 2, "bytes": 9} for name, n in CATEGORIES.items()}
    content = PROVENANCE | {
        "kind": kind,
        "config": CONFIG | {"test_data": {"root": "data", "shard": f"{number}/{PARTS}"}},
        "data": {"test": DESCRIBED["data"]["test"] | {"categories": counts}},
        "files": hashes_of(folder),
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(content))


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return [write_part(tmp_path / f"part{number}", number) for number in range(1, PARTS + 1)]


def refused(parts: list[Path], tmp_path: Path) -> str:
    with pytest.raises(UserError) as caught:
        merge(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_parts_that_belong_together_are_joined(parts: list[Path], tmp_path: Path) -> None:
    merge(parts[::-1], tmp_path / "out")
    content = json.loads((tmp_path / "out" / PROVENANCE_FILE).read_text())
    assert content["files"] == hashes_of(tmp_path / "out")
    assert set(content["files"]) == {"metrics.json", PREDICTIONS_FILE, "curves.json"}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["categories"].keys() == CATEGORIES.keys()


@pytest.mark.parametrize("name", [STATE_FILE, PREDICTIONS_FILE])
def test_a_file_of_another_part_is_refused(name: str, parts: list[Path], tmp_path: Path) -> None:
    shutil.copy(parts[2] / name, parts[3] / name)  # of the same category, and of as many images
    assert refused(parts, tmp_path) == f"{parts[3] / name} is damaged: it is not what the run has written"
    (parts[3] / name).unlink()
    assert f"{parts[3] / name} is damaged: the run has written it, but" in refused(parts, tmp_path)


def test_a_part_without_hashes_is_refused(parts: list[Path], tmp_path: Path) -> None:
    content = json.loads((parts[0] / PROVENANCE_FILE).read_text())
    del content["files"]
    (parts[0] / PROVENANCE_FILE).write_text(json.dumps(content))
    assert f"{parts[0] / PROVENANCE_FILE} has no hash of {PREDICTIONS_FILE}; run it again" in refused(parts, tmp_path)


def test_the_same_predictions_twice_are_refused(parts: list[Path], tmp_path: Path) -> None:
    shutil.copy(parts[2] / PREDICTIONS_FILE, parts[3])
    record(parts[3], 4)
    assert "expected each image once in predictions.csv of all parts, but 4.png" in refused(parts, tmp_path)


def test_predictions_of_other_images_than_the_state_are_refused(parts: list[Path], tmp_path: Path) -> None:
    shutil.copy(parts[0] / PREDICTIONS_FILE, parts[3])
    record(parts[3], 4)
    assert f"{parts[3] / PREDICTIONS_FILE} is damaged: it has other images or labels than" in refused(parts, tmp_path)


def test_parts_in_another_order_than_the_data_are_refused(parts: list[Path], tmp_path: Path) -> None:
    for number, folder in enumerate((parts[2], parts[3], parts[0], parts[1]), start=1):
        record(folder, number)
    assert "to have the data's categories, in their order" in refused(parts, tmp_path)


def test_labels_that_the_state_does_not_have_are_refused(parts: list[Path], tmp_path: Path) -> None:
    text = (parts[3] / PREDICTIONS_FILE).read_text()
    (parts[3] / PREDICTIONS_FILE).write_text(text.replace("6.png,nut,0", "6.png,nut,"))
    record(parts[3], 4)
    assert "it has other images or labels than" in refused(parts, tmp_path)


def test_an_image_that_is_missing_is_noticed(parts: list[Path], tmp_path: Path) -> None:
    for number, folder in enumerate(parts, start=1):
        (folder / STATE_FILE).unlink()
        record(folder, number, "predict")
    lines = (parts[3] / PREDICTIONS_FILE).read_text().splitlines(keepends=True)
    (parts[3] / PREDICTIONS_FILE).write_text("".join(lines[:-1]))
    record(parts[3], 4, "predict")
    assert "expected the 8 images of the data in predictions.csv of all parts, found 7" in refused(parts, tmp_path)


def _without(tensors: dict[str, Tensor]) -> None:
    tensors.clear()


def _half(tensors: dict[str, Tensor]) -> None:
    tensors["1.normal_scores"] = tensors["1.normal_scores"][1:].clone()


def _uneven(tensors: dict[str, Tensor]) -> None:
    tensors["1.scores"] = tensors["1.scores"][:1]


def _set(name: str, value: Any) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = value(tensors[name])

    return change


@pytest.mark.parametrize(
    "change",
    [
        _without,
        _half,
        _uneven,
        _set("1.normal_scores", lambda scores: scores * float("nan")),
        _set("1.normal_scores", lambda scores: scores[None]),
        _set("1.scores", lambda scores: scores.int()),
        _set("1.scores", lambda scores: scores[:, :2].clone()),
        _set("1.scores", lambda scores: scores.sum()),
        _set("1.label", lambda label: label.int() + 1),
        _set("1.anomalous_areas", lambda areas: areas * 0),
        lambda tensors: tensors.update({"1.histogram": torch.zeros(3, 5, dtype=torch.int64)}),
    ],
)
def test_a_state_that_is_not_what_its_header_says_is_refused(
    change: Callable[[dict[str, Tensor]], None], parts: list[Path], tmp_path: Path
) -> None:
    path = parts[3] / STATE_FILE
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, header)
    record(parts[3], 4)
    assert refused(parts, tmp_path).startswith(f"{path} is damaged: ")


@pytest.mark.parametrize("header", ["", "{", "null", '{"categories": []}', '{"memory_gb": NaN}', "[" * 10_000])
def test_a_header_that_is_something_else_is_refused(header: str, parts: list[Path], tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, parts[3] / STATE_FILE, {"state": header})
    record(parts[3], 4)
    assert refused(parts, tmp_path).startswith(f"{parts[3] / STATE_FILE} is damaged: ")


def test_a_header_that_counts_others_is_refused(parts: list[Path], tmp_path: Path) -> None:
    path = parts[3] / STATE_FILE
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    for change in (
        {"fusion": "mean"},
        {"fusion": None},
        {"terms": []},
        {"terms": ["cls_score", "cls_score"]},
        {"categories": ["nut", "candle"]},
        {"vanished_masks": {"gear": 1}},
        {"categories": ["nut", "nut"]},
    ):
        save_file(tensors, path, {"state": json.dumps(header | change)})
        record(parts[3], 4)
        assert refused(parts, tmp_path).startswith(f"{path} is damaged: ")
