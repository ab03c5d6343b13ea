"""`src.predict` with a calibration: what it marks on each image."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.regions import region_from
from src.report.pictures import OUTLINE_COLOUR
from tests.cli import Cli, golden_backbone
from tests.golden_reference import Golden
from tests.report.pages import pictures_of

OPEN_PAGE = "callbacks.report={_target_: src.callbacks.report.Report, max_images: 2000}"


@pytest.mark.slow
def test_a_calibrated_prediction_leaves_its_regions(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, count in (("good", 4), ("new", 6)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    common = [*golden_backbone(golden_a), "category=cup"]
    calibrated = cli.ok("calibrate", f"source={tmp_path / 'good'}", "max_false_alarms=0.5", *common, name="calibrated")
    threshold = f"threshold={calibrated.folder / 'calibration.json'}"
    files = ["save_maps=true", "save_overlays=true", OPEN_PAGE]
    run = cli.ok("predict", f"source={tmp_path / 'new'}", *common, threshold, *files, name="predicted")
    with (run.folder / "regions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert rows
    limit = json.loads((calibrated.folder / "calibration.json").read_text())["categories"]["cup"]["map_threshold"]
    annotations = json.loads((run.folder / "regions.coco.json").read_text())["annotations"]
    assert [one["area"] for one in annotations] == [region_from(row).area for row in rows]
    for number, row in enumerate(run.predictions):
        highest = np.load(run.folder / row["map"]).max()
        own = [one for one in rows if one[0] == row["image_path"]]
        assert bool(own) == (highest > limit)
        overlay = np.asarray(Image.open(run.folder / row["overlay"]))
        assert (overlay == OUTLINE_COLOUR).all(axis=2).any() == bool(own)
        assert bool(pictures_of(run.folder)[str(number)][3]) == bool(own)

    plain = cli.ok("predict", f"source={tmp_path / 'new'}", *common, "threshold=0.5", name="plain")
    assert not list(plain.folder.glob("regions*"))  # a number is no threshold of maps
