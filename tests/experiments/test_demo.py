"""The demo finds defects: the whole of it, as `make demo` runs it, and what is shown of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from datamodules.demo.settings import PROJECTION_TEST, PROJECTION_TRAIN
from datamodules.errors import UserError
from experiments.demo import readme_pictures
from experiments.demo.compare import side_by_side
from experiments.demo.pictures import draw_cases
from tests.cli import Cli, Finished

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(demo: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """Both runs, as `python -m experiments.demo` makes them."""
    with pytest.MonkeyPatch.context() as patch:
        cli = Cli(patch, None, tmp_path_factory.mktemp("demo"))
        return {
            "sdp": cli.ok("eval", "+exp=sdp_demo", *demo, "save_maps=true", name="sdp"),
            "sdp_plus": cli.ok("train", "+exp=sdp_plus_demo", *demo, "save_maps=true", name="sdp_plus"),
        }


def test_both_methods_find_defects(runs: dict[str, Finished]) -> None:
    sdp, sdp_plus = (runs[name].metrics["mean"] for name in ("sdp", "sdp_plus"))
    assert sdp["image_AUROC"] >= 0.88
    assert sdp["pixel_AUROC"] >= 0.72
    assert sdp_plus["pixel_AUROC"] >= 0.88
    assert sdp_plus["pixel_AUPRO"] >= 0.65
    assert sdp_plus["pixel_F1Max"] >= 1.3 * sdp["pixel_F1Max"]


def test_projections_are_tested_on_categories_they_have_not_seen(runs: dict[str, Finished]) -> None:
    assert not set(PROJECTION_TRAIN) & set(PROJECTION_TEST)
    for run in runs.values():
        assert list(run.metrics["categories"]) == list(PROJECTION_TEST)
    assert runs["sdp_plus"].provenance["protocol"]["trained_on"]["categories"] == list(PROJECTION_TRAIN)


def test_bfloat16_changes_the_metrics_by_less_than_half_a_percent(
    runs: dict[str, Finished], demo: list[str], cli: Cli
) -> None:
    half = cli.ok("eval", "+exp=sdp_demo", *demo, "trainer.precision=bf16-mixed")
    assert half.predictions != runs["sdp"].predictions
    for name, value in runs["sdp"].metrics["mean"].items():
        assert half.metrics["mean"][name] == pytest.approx(value, abs=0.005), name


def test_the_table_shows_both_runs(runs: dict[str, Finished]) -> None:
    console = Console(width=120, record=True)
    console.print(side_by_side({name: run.metrics for name, run in runs.items()}))
    text = console.export_text()
    assert f"{100 * runs['sdp'].metrics['mean']['pixel_AUPRO']:.1f}" in text
    assert f"{100 * runs['sdp_plus'].metrics['categories']['cookie']['image_AP']:.1f}" in text


def test_the_pictures_show_cases(runs: dict[str, Finished], tmp_path: Path) -> None:
    best, worst = draw_cases([run.folder for run in runs.values()], tmp_path)
    assert (best.name, worst.name) == ("best.png", "worst.png")
    pictures = [np.asarray(Image.open(path)) for path in (best, worst)]
    assert all(picture.std() > 10 for picture in pictures)
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


def test_the_readme_shows_both_methods_on_one_scale_of_colours(runs: dict[str, Finished], tmp_path: Path) -> None:
    readme_pictures.draw_cases(runs["sdp"].folder.parent, tmp_path / "cases.webp")
    with Image.open(tmp_path / "cases.webp") as picture:
        assert picture.width > 800
        assert np.asarray(picture).std() > 10


def test_the_readme_needs_the_demo(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run make demo first"):
        readme_pictures.draw_cases(tmp_path, tmp_path / "cases.webp")
    with pytest.raises(UserError, match="run make demo first"):
        readme_pictures.picture_page(tmp_path / "report.html", tmp_path / "report.webp")


def test_a_page_is_not_pictured_without_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "report.html"
    page.touch()
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(UserError, match="expected playwright"):
        readme_pictures.picture_page(page, tmp_path / "report.webp")
