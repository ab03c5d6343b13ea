"""The demo's runs, on a part of its data, and what is shown of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments.demo.compare import side_by_side
from experiments.demo.pictures import draw_cases
from tests.cli import Cli

QUIET = ["trainer=cpu", "~callbacks.progress", "+trainer.enable_progress_bar=false", "save_maps=true"]


@pytest.mark.slow
def test_the_demo_finds_defects_and_shows_them(cli: Cli, tmp_path: Path) -> None:
    data = [*QUIET, f"paths.data_dir={tmp_path / 'data'}", "test_data.categories=[cookie,leather]"]
    sdp = cli.ok("eval", "+exp=sdp_demo", *data, name="sdp")
    sdp_plus = cli.ok("train", "+exp=sdp_plus_demo", *data, "trainer.max_epochs=3", name="sdp_plus")
    for run in (sdp, sdp_plus):
        assert set(run.metrics["categories"]) == {"leather", "cookie"}
        assert run.metrics["mean"]["image_AUROC"] > 0.85
        assert run.metrics["mean"]["pixel_AUROC"] > 0.85
    assert sdp_plus.out.splitlines()[0].startswith("train demo data (test split, 288 images of 6 categories)")

    console = Console(width=120, record=True)
    console.print(side_by_side({"sdp": sdp.metrics, "sdp_plus": sdp_plus.metrics}))
    text = console.export_text()
    assert f"{100 * sdp.metrics['mean']['pixel_AUPRO']:.1f}" in text
    assert f"{100 * sdp_plus.metrics['categories']['cookie']['image_AP']:.1f}" in text

    best, worst = draw_cases([sdp.folder, sdp_plus.folder], tmp_path)
    assert (best.name, worst.name) == ("best.png", "worst.png")
    pictures = [np.asarray(Image.open(path)) for path in (best, worst)]
    assert all(picture.std() > 10 for picture in pictures)
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()
