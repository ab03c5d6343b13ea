"""The files of what a threshold of the maps marks, as a prediction leaves them."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from src.callbacks.region_writer import RegionWriter
from src.regions import REGION_COLUMNS, regions_of
from src.run.predictions import Prediction, write_predictions
from src.run.region_files import read_outlines, write_coco
from tests.callbacks.helpers import NOBODY

SIZES = {"a.png": (30, 40), "b.png": (21, 17), "c.png": (8, 8)}  # height, width
THRESHOLDS = {"cup": 0.5, "metal nut, [new]": 0.75}


class Decided:
    """The thresholds of maps by category."""

    def __init__(self, thresholds: Mapping[str, float | None]) -> None:
        self.thresholds = thresholds

    def map_threshold(self, category: str) -> float | None:
        return self.thresholds[category]


def trainer_of(root: Path, names: Sequence[tuple[str, str]], rank: int = 0) -> Any:
    """The trainer of a prediction of these images, of which each has its size on disk."""
    for _, path in names:
        height, width = SIZES[path]
        Image.new("L", (width, height)).save(root / path)
    data = SimpleNamespace(root=root, image_names=list(names), is_upright=False)
    return SimpleNamespace(datamodule=data, global_rank=rank)


def writer_of(
    folder: Path, thresholds: Mapping[str, float | None] = THRESHOLDS, is_resumed: bool = False
) -> RegionWriter:
    decisions: Any = Decided(thresholds)
    return RegionWriter(folder, decisions, is_resumed)


def batch_of(names: Sequence[tuple[str, str]]) -> dict[str, Any]:
    categories, paths = zip(*names, strict=True)
    return {"category": list(categories), "image_path": list(paths), "size": [SIZES[path] for path in paths]}


def maps_of(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Small maps with a few peaks, as a model gives them."""
    return list(torch.rand(count, 6, 5, generator=torch.Generator().manual_seed(seed)))


def predict(writer: RegionWriter, trainer: Any, names: Sequence[tuple[str, str]], maps: Sequence[torch.Tensor]) -> None:
    writer.on_predict_batch_end(trainer, NOBODY, {"scores": None, "maps": list(maps)}, batch_of(names), 0)


def end(writer: RegionWriter, trainer: Any, names: Sequence[tuple[str, str]]) -> None:
    rows = [Prediction(path, category, None, {}, 0.0) for category, path in names]
    write_predictions(writer.folder / "predictions.csv", rows, [], None)
    writer.on_predictions(trainer, NOBODY)


def rows_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "regions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


NAMES = [("cup", "a.png"), ("metal nut, [new]", "b.png"), ("cup", "c.png")]


def test_regions_are_those_of_the_map_at_the_images_size(tmp_path: Path) -> None:
    writer, trainer, maps = writer_of(tmp_path), trainer_of(tmp_path, NAMES), maps_of(3)
    predict(writer, trainer, NAMES, maps)
    end(writer, trainer, NAMES)
    assert tuple(rows_in(tmp_path)[0]) == REGION_COLUMNS
    for (category, path), anomaly_map in zip(NAMES, maps, strict=True):
        large = F.interpolate(anomaly_map[None, None], size=SIZES[path], mode="bilinear", align_corners=False)[0, 0]
        expected = regions_of(large.numpy(), THRESHOLDS[category])
        own = [row for row in rows_in(tmp_path) if (row["category"], row["image_path"]) == (category, path)]
        assert expected
        assert [int(row["region"]) for row in own] == list(range(1, len(expected) + 1))
        assert [int(row["area"]) for row in own] == [region.area for region in expected]
        assert sum(region.area for region in expected) == int((large > THRESHOLDS[category]).sum())
        polygons = [polygon for region in expected for polygon in region.outline]
        assert read_outlines(tmp_path)[category, path] == polygons


def test_coco_has_every_image_and_every_region(tmp_path: Path) -> None:
    writer, trainer = writer_of(tmp_path), trainer_of(tmp_path, NAMES)
    predict(writer, trainer, NAMES, [*maps_of(2), torch.zeros(6, 5)])
    end(writer, trainer, NAMES)
    written = json.loads((tmp_path / "regions.coco.json").read_text())
    sizes = {one["file_name"]: (one["height"], one["width"]) for one in written["images"]}
    assert sizes == SIZES  # the last one has no region
    files = {one["id"]: one["file_name"] for one in written["images"]}
    names = {one["id"]: one["supercategory"] for one in written["categories"]}
    assert [
        (files[one["image_id"]], names[one["category_id"]], str(one["area"]), repr(one["score"]))
        for one in written["annotations"]
    ] == [(row["image_path"], row["category"], row["area"], row["highest"]) for row in rows_in(tmp_path)]


def test_several_processes_write_one_table_in_the_order_of_the_images(tmp_path: Path) -> None:
    maps = maps_of(3)
    one, other = tmp_path / "1", tmp_path / "2"
    for folder in (one, other):
        folder.mkdir()
    trainer = trainer_of(one, NAMES)
    writer = writer_of(one)
    predict(writer, trainer, NAMES, maps)
    end(writer, trainer, NAMES)
    first, second = trainer_of(other, NAMES), trainer_of(other, NAMES, rank=1)
    predict(writer_of(other), second, NAMES[:2], maps[:2])
    writer = writer_of(other)
    predict(writer, first, NAMES[2:], maps[2:])
    end(writer, first, NAMES)
    for name in ("regions.csv", "regions.coco.json"):
        assert (one / name).read_text() == (other / name).read_text()
    assert [path.name for path in other.glob("regions*.csv")] == ["regions.csv"]


def test_a_run_that_was_killed_goes_on_to_the_same_files(tmp_path: Path) -> None:
    maps = maps_of(3)
    whole, killed = tmp_path / "1", tmp_path / "2"
    for folder in (whole, killed):
        folder.mkdir()
        trainer = trainer_of(folder, NAMES)
        writer = writer_of(folder)
        writer.setup(trainer, NOBODY, "predict")
        predict(writer, trainer, NAMES[:1], maps[:1])
        predict(writer, trainer, NAMES[1:2], maps[1:2])
        if folder == killed:  # before the second image was in predictions.csv
            writer = writer_of(folder, is_resumed=True)
            writer.setup(trainer, NOBODY, "predict")
            assert writer.keep(trainer, {NAMES[0]}) == {NAMES[0]}
            assert {row["image_path"] for row in rows_in(folder)} == {"a.png"}
            predict(writer, trainer, NAMES[1:2], maps[1:2])
        predict(writer, trainer, NAMES[2:], maps[2:])
        end(writer, trainer, NAMES)
    for name in ("regions.csv", "regions.coco.json"):
        assert (whole / name).read_text() == (killed / name).read_text()


def test_regions_of_another_run_are_removed(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, NAMES)
    predict(writer_of(tmp_path), trainer, NAMES, maps_of(3))
    writer = writer_of(tmp_path)
    writer.setup(trainer, NOBODY, "predict")
    predict(writer, trainer, NAMES[:1], maps_of(1))
    assert {row["image_path"] for row in rows_in(tmp_path)} == {"a.png"}


def test_nothing_that_lies_above_is_an_empty_table(tmp_path: Path) -> None:
    writer, trainer = writer_of(tmp_path, {"cup": None}), trainer_of(tmp_path, NAMES[:1])
    predict(writer, trainer, NAMES[:1], maps_of(1))
    writer.on_predict_batch_end(trainer, NOBODY, None, {}, 0)  # a filler
    end(writer, trainer, NAMES[:1])
    assert (tmp_path / "regions.csv").read_text() == f"{','.join(REGION_COLUMNS)}\n"
    assert json.loads((tmp_path / "regions.coco.json").read_text())["annotations"] == []


def test_a_map_that_reaches_the_threshold_marks_nothing(tmp_path: Path) -> None:
    """The threshold is the highest value of a calibrated map, which rounding would exceed at another size."""
    generator = torch.Generator().manual_seed(0)
    trainer = trainer_of(tmp_path, NAMES[:1])
    exceeding = 0
    for _ in range(20):
        anomaly_map = torch.rand(7, 9, generator=generator)
        anomaly_map[2:5, 2:5] = 1.01 * anomaly_map.max()
        threshold = float(anomaly_map.max())
        large = F.interpolate(anomaly_map[None, None], size=SIZES["a.png"], mode="bilinear", align_corners=False)
        exceeding += float(large.max()) > threshold
        predict(writer_of(tmp_path, {"cup": threshold}), trainer, NAMES[:1], [anomaly_map])
    assert exceeding > 0
    assert rows_in(tmp_path) == []


def test_an_outline_may_be_longer_than_what_csv_takes_for_a_field(tmp_path: Path) -> None:
    """Python's csv refuses fields of more than 131072 characters."""
    comb = np.zeros((6, 12001), np.float32)
    comb[0], comb[:, ::2] = 1, 1
    path, names = "comb.png", [("cup", "comb.png")]
    SIZES[path] = comb.shape
    try:
        writer, trainer = writer_of(tmp_path), trainer_of(tmp_path, names)
        predict(writer, trainer, names, [torch.from_numpy(comb)])
        end(writer, trainer, names)
    finally:
        del SIZES[path]
    [region] = regions_of(comb, 0.5)
    assert (tmp_path / "regions.csv").stat().st_size > 131072
    assert read_outlines(tmp_path) == {("cup", path): region.outline}


def test_an_image_that_is_gone_is_left_out_of_coco(tmp_path: Path) -> None:
    writer, trainer = writer_of(tmp_path), trainer_of(tmp_path, NAMES)
    predict(writer, trainer, NAMES, maps_of(3))
    (tmp_path / "a.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        end(writer, trainer, NAMES)
    written = json.loads((tmp_path / "regions.coco.json").read_text())
    assert [one["file_name"] for one in written["images"]] == ["b.png", "c.png"]
    assert len(written["annotations"]) == sum(row["image_path"] != "a.png" for row in rows_in(tmp_path))


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    (tmp_path / "regions.csv").write_text(f"{','.join(REGION_COLUMNS)}\na.png,cup,1,0,0,1,1,1,0.5,0 0 x\n")
    for read in (lambda: read_outlines(tmp_path), lambda: write_coco(tmp_path, [("a.png", "cup", 40, 30)])):
        with pytest.raises(Exception, match=r"regions\.csv is damaged"):
            read()
