"""predictions.csv, read back with the standard library."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from src.callbacks.prediction_writer import PredictionWriter
from src.models.method import Scores
from src.run.predictions import Prediction, read_predictions, write_predictions
from tests.callbacks.helpers import Stage, batch_of, end, give, lonely, scores_of

TERMS = ["cls_score", "map_max"]
COLUMNS = ["image_path", "category", "label", *TERMS, "image_score", "single_score"]
PATHS = [f"bottle/test/good/{number:03}.png" for number in range(4)]


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        assert reader.fieldnames == COLUMNS
    return rows


def write(
    folder: Path, scores: Scores, stage: Stage = "test", paths: list[str] = PATHS, rule: str | None = "min_max_sum"
) -> list[dict[str, str]]:
    writer, trainer = PredictionWriter(folder, TERMS, rule), lonely([("bottle", path) for path in paths])
    give(writer, stage, scores, batch_of("bottle", paths), trainer)
    end(writer, stage, trainer)
    return read(folder)


def min_max(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def test_rows_are_in_file_order_with_their_labels(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, TERMS, "min_max_sum")
    give(writer, "test", scores_of([0.1, 0.2], [1, 2]), batch_of("screw", ["s/b.png", "s/a.png"], [1, 0]))
    give(writer, "test", scores_of([0.3], [3]), batch_of("bottle", ["b/c.png"], [1]))
    give(writer, "test", scores_of([0.4], [4]), batch_of("screw", ["s/c.png"], [0]))
    assert not (tmp_path / "predictions.csv").exists()
    end(writer, "test")
    rows = [(row["image_path"], row["category"], row["label"]) for row in read(tmp_path)]
    assert rows == [
        ("s/b.png", "screw", "1"),
        ("s/a.png", "screw", "0"),
        ("b/c.png", "bottle", "1"),
        ("s/c.png", "screw", "0"),
    ]


def test_label_is_empty_where_the_data_has_none(tmp_path: Path) -> None:
    assert [row["label"] for row in write(tmp_path, scores_of([0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]))] == [""] * 4


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 12345.678, 1e30])
def test_scores_come_back_as_the_very_float32(scale: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cls_score, map_max = (rng.normal(size=500) * scale).astype(np.float32), rng.random(500, dtype=np.float32)
    terms = {"cls_score": torch.from_numpy(cls_score), "map_max": torch.from_numpy(map_max)}
    scores = Scores(torch.zeros(500, 1, 1), terms, torch.from_numpy(cls_score[::-1].copy()))
    rows = write(tmp_path, scores, paths=[str(i) for i in range(500)])
    for name, values in (("cls_score", cls_score), ("map_max", map_max), ("single_score", cls_score[::-1])):
        for read_as in (np.float32, np.float64):
            assert (np.array([read_as(row[name]) for row in rows]) == values).all()


def test_image_score_is_fused_over_its_category_from_the_written_values(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    writer = PredictionWriter(tmp_path, TERMS, "min_max_sum")
    for start in range(0, 12, 4):  # batches that mix two categories
        batch = batch_of("", [f"{start + i}.png" for i in range(4)]) | {"category": ["a", "b", "b", "a"]}
        cls_score, map_max = torch.rand(2, 4, generator=generator)
        give(writer, "test", scores_of((cls_score / 3).tolist(), (40 * map_max).tolist()), batch)
    end(writer, "test")
    rows = read(tmp_path)
    for category in ("a", "b"):
        own = [row for row in rows if row["category"] == category]
        assert len(own) == 6
        terms = [min_max([float(row[key]) for row in own]) for key in ("cls_score", "map_max")]
        for row, *parts in zip(own, *terms, strict=True):
            assert float(row["image_score"]) == sum(parts)


@pytest.mark.parametrize(
    ("cls_score", "map_max", "expected"),
    [
        ([0.3] * 4, [1, 2, 3, 5], [0, 0.25, 0.5, 1]),
        ([0.25, 0.5, 0.75, 0.25], [7] * 4, [0, 0.5, 1, 0]),
        ([0.3] * 4, [7] * 4, [0, 0, 0, 0]),
    ],
)
def test_a_term_that_is_constant_counts_as_0(
    cls_score: list[float], map_max: list[float], expected: list[float], tmp_path: Path
) -> None:
    rows = write(tmp_path, scores_of(cls_score, map_max))
    assert [float(row["image_score"]) for row in rows] == expected


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_the_image_score_is_empty_where_its_rule_needs_images_that_are_not_there(stage: Stage, tmp_path: Path) -> None:
    rule = "min_max_sum" if stage == "predict" else None
    rows = write(tmp_path, scores_of([0.5, 0.25, 0.0, 0.0], [7, 0.5, -3, -3]), stage, rule=rule)
    assert [row["image_score"] for row in rows] == [""] * 4
    assert [float(row["single_score"]) for row in rows] == [7.5, 0.75, -3, -3]


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_the_single_score_is_the_image_score_of_a_method_without_fusion(stage: Stage, tmp_path: Path) -> None:
    rows = write(tmp_path, scores_of([0.5, 0.25, 0.0, 0.0], [7, 0.5, -3, -3]), stage, rule="single")
    assert [row["image_score"] for row in rows] == [row["single_score"] for row in rows]


def test_terms_are_in_the_order_of_the_method(tmp_path: Path) -> None:
    scores = scores_of([0.5], [2])
    writer = PredictionWriter(tmp_path, TERMS, "half_sum_min_max")
    give(writer, "test", scores._replace(terms=dict(reversed(scores.terms.items()))), batch_of("bottle", PATHS[:1]))
    end(writer, "test")
    [row] = read(tmp_path)
    assert (row["cls_score"], row["map_max"], row["image_score"]) == ("0.5", "2.0", "0.25")


def test_a_term_with_the_name_of_another_column_is_refused(tmp_path: Path) -> None:
    for terms in (["label"], ["image_score"], ["is_anomalous"], ["a", "a"]):
        with pytest.raises(ValueError, match="`terms` to make each column once"):
            PredictionWriter(tmp_path, terms, None)


@pytest.mark.parametrize("rule", [None, "single", "min_max_sum"])
def test_what_was_written_is_read_again(rule: str | None, tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    rows = [
        Prediction("a.png", "x", 0, {"s": 0.1, "t": -1e30}, 1 / 3),
        Prediction("gr\xf6\udcff.png", "y", None, {"s": 0.5, "t": 2.0}, 2.0),
    ]
    write_predictions(path, rows, ["s", "t"], rule)
    scores = {None: [None, None], "single": [1 / 3, 2.0], "min_max_sum": [0.0, 0.0]}[rule]
    expected = [row._replace(image_score=score) for row, score in zip(rows, scores, strict=True)]
    assert read_predictions(path) == expected
    first = path.read_bytes()
    write_predictions(path, read_predictions(path), ["s", "t"], rule)
    assert path.read_bytes() == first


def test_a_method_may_have_no_terms(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, [Prediction("a.png", "x", 1, {}, 0.5)], [], "single")
    assert path.read_text() == "image_path,category,label,image_score,single_score\na.png,x,1,0.5,0.5\n"
    assert read_predictions(path) == [Prediction("a.png", "x", 1, {}, 0.5, 0.5)]


def test_paths_with_commas_and_quotes_survive(tmp_path: Path) -> None:
    paths = ["a,b.png", 'say "x".png', "with space.png", "größe.png"]
    assert [row["image_path"] for row in write(tmp_path, scores_of([0] * 4, [0] * 4), paths=paths)] == paths


def test_a_second_test_starts_an_empty_table(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, TERMS, "min_max_sum")
    for paths in (PATHS, PATHS[:2]):
        give(writer, "test", scores_of([0.1] * len(paths), [1] * len(paths)), batch_of("bottle", paths))
        end(writer, "test")
    assert [row["image_path"] for row in read(tmp_path)] == PATHS[:2]


def test_a_prediction_grows_and_ends_in_file_order(tmp_path: Path) -> None:
    writer, trainer = PredictionWriter(tmp_path, TERMS, "min_max_sum"), lonely([("x", "a"), ("x", "b"), ("x", "c")])
    give(writer, "predict", scores_of([0.3], [3]), batch_of("x", ["c"]), trainer)
    assert [row["image_path"] for row in read(tmp_path)] == ["c"]
    give(writer, "predict", scores_of([0.1, 0.2], [1, 2]), batch_of("x", ["a", "b"]), trainer)
    end(writer, "predict", trainer)
    assert [(row["image_path"], float(row["map_max"])) for row in read(tmp_path)] == [("a", 1), ("b", 2), ("c", 3)]


class Images(LightningDataModule):
    """Batches, and the names of their images."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        super().__init__()
        self.batches = batches
        self.image_names = [("bottle", path) for batch in batches for path in batch["image_path"]]

    def leave_out(self, names: set[tuple[str, str]]) -> None:
        assert not names

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    predict_dataloader = test_dataloader


class Scorer(LightningModule):
    """Scores that tell one image from the other."""

    def test_step(self, batch: dict[str, list[str]], batch_idx: int) -> dict[str, Scores]:
        numbers = [float(path) for path in batch["image_path"]]
        return {"scores": scores_of(numbers, numbers)}

    predict_step = test_step


@pytest.mark.parametrize(
    ("stage", "rule", "fused"), [("test", "min_max_sum", [0, 1, 2]), ("predict", "single", [2, 4, 6])]
)
def test_lightning_calls_the_writer(stage: Stage, rule: str, fused: list[float], tmp_path: Path) -> None:
    batches = [batch_of("bottle", ["1", "2"], [0, 1]), batch_of("bottle", ["3"], [1])]
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PredictionWriter(tmp_path, TERMS, rule)],
    )
    getattr(trainer, stage)(Scorer(), datamodule=Images(batches))
    rows = read(tmp_path)
    assert [row["image_path"] for row in rows] == ["1", "2", "3"]
    assert [float(row["image_score"]) for row in rows] == fused
