"""predictions.csv, read back with the standard library."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from src.callbacks.predictions import PredictionWriter
from src.models.method import Scores
from tests.callbacks.helpers import Stage, batch_of, end, give, scores_of

COLUMNS = ["image_path", "category", "label", "cls_score", "map_max", "image_score"]
PATHS = [f"bottle/test/good/{number:03}.png" for number in range(4)]


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        assert reader.fieldnames == COLUMNS
    return rows


def write(folder: Path, scores: Scores, stage: Stage = "test", paths: list[str] = PATHS) -> list[dict[str, str]]:
    writer = PredictionWriter(folder)
    give(writer, stage, scores, batch_of("bottle", paths))
    end(writer, stage)
    return read(folder)


def min_max(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def test_rows_are_in_file_order_with_their_labels(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path)
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
    scores = Scores(torch.zeros(500, 1, 1), torch.from_numpy(cls_score), torch.from_numpy(map_max))
    rows = write(tmp_path, scores, paths=[str(i) for i in range(500)])
    for name, values in (("cls_score", cls_score), ("map_max", map_max)):
        for read_as in (np.float32, np.float64):
            assert (np.array([read_as(row[name]) for row in rows]) == values).all()


def test_image_score_is_fused_over_its_category_from_the_written_values(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    writer = PredictionWriter(tmp_path)
    for start in range(0, 12, 4):  # batches that mix two categories
        batch = batch_of("", [f"{start + i}.png" for i in range(4)]) | {"category": ["a", "b", "b", "a"]}
        cls_score, map_max = torch.rand(2, 4, generator=generator)
        give(writer, "test", Scores(torch.zeros(4, 1, 1), cls_score / 3, 40 * map_max), batch)
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


def test_a_prediction_is_the_sum_of_the_two_scores_of_one_image(tmp_path: Path) -> None:
    rows = write(tmp_path, scores_of([0.1, 0.9, 0.3, 0.3], [7, 0.7, -3, -3]), "predict")
    for row in rows:
        assert float(row["image_score"]) == float(row["cls_score"]) + float(row["map_max"])
    assert rows[2]["image_score"] == rows[3]["image_score"]


def test_paths_with_commas_and_quotes_survive(tmp_path: Path) -> None:
    paths = ["a,b.png", 'say "x".png', "with space.png", "größe.png"]
    assert [row["image_path"] for row in write(tmp_path, scores_of([0] * 4, [0] * 4), paths=paths)] == paths


def test_a_second_test_starts_an_empty_table(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path)
    for paths in (PATHS, PATHS[:2]):
        give(writer, "test", scores_of([0.1] * len(paths), [1] * len(paths)), batch_of("bottle", paths))
        end(writer, "test")
    assert [row["image_path"] for row in read(tmp_path)] == PATHS[:2]


class Scorer(LightningModule):
    """Scores that tell one image from the other."""

    def test_step(self, batch: dict[str, list[str]], batch_idx: int) -> dict[str, Scores]:
        numbers = [float(path) for path in batch["image_path"]]
        return {"scores": scores_of(numbers, numbers)}

    predict_step = test_step


@pytest.mark.parametrize(("stage", "fused"), [("test", [0, 1, 2]), ("predict", [2, 4, 6])])
def test_lightning_calls_the_writer(stage: Stage, fused: list[float], tmp_path: Path) -> None:
    batches = [batch_of("bottle", ["1", "2"], [0, 1]), batch_of("bottle", ["3"], [1])]
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PredictionWriter(tmp_path)],
    )
    getattr(trainer, stage)(Scorer(), loader)
    rows = read(tmp_path)
    assert [row["image_path"] for row in rows] == ["1", "2", "3"]
    assert [float(row["image_score"]) for row in rows] == fused
