"""Decisions on the page and in the table, against what the run has written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from src.report.page import table_of
from src.report.table import print_table, rows_of
from tests.cli import Cli, golden_backbone
from tests.golden_reference import Golden
from tests.report.test_description import PROBE, described
from tests.test_own_images import OPEN_PAGE, draw

RESULT = {
    "mean": {"image_AUROC": 0.5, "escapes": 0.25, "false_alarms": 0.125},
    "categories": {"cup": {"image_AUROC": 0.5, "escapes": 0.25, "false_alarms": 0.125}, "mug": {"false_alarms": 0.5}},
}


def test_the_table_has_both_rates_in_percent(capsys) -> None:  # type: ignore[no-untyped-def]
    assert rows_of(RESULT)[0] == ["category", "image_AUROC", "escapes", "false_alarms"]  # type: ignore[arg-type]
    print_table(RESULT, "title")  # type: ignore[arg-type]
    out = capsys.readouterr().out
    [cup] = [line.split() for line in out.splitlines() if " cup " in line]
    assert cup[3::2] == ["50.0", "25.0", "12.5"]
    assert "escapes and false alarms are those at the given threshold" in out


def test_the_page_has_them_without_a_tint_and_says_why_one_is_absent() -> None:
    card = {"normal": 2, "anomalous": 0, "vanished_masks": None}
    table = table_of(RESULT, {"cup": card, "mug": card})  # type: ignore[arg-type]
    assert table.columns == ["image_AUROC", "escapes", "false_alarms"]
    (_, cup), (_, mug) = table.rows
    assert [cell.text for cell in cup] == ["50.0", "25.0", "12.5"]
    assert cup[2].tint is None
    assert mug[1].title == "absent: it is a share of the anomalous images, and this category has none"


@pytest.mark.slow
def test_the_slider_starts_at_the_decisions(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    """The page calls an image anomalous at or above its threshold: the same images as are decided to be."""
    photos = draw(tmp_path / "photos", 9)
    options = [*golden_backbone(golden_a), f"source={photos}", "category=cup", OPEN_PAGE]
    first = cli.ok("predict", *options, name="first")
    scores = sorted(float(row["single_score"]) for row in first.predictions)
    done = cli.ok("predict", *options, f"threshold={scores[4]!r}", name="decided")
    page = (done.folder / "report.html").read_text()
    start = page.index('"single": ') + len('"single": ')
    threshold = float(json.loads(page[start : page.index("}", start)]))
    assert threshold == np.nextafter(scores[4], np.inf)
    assert sum(score >= threshold for score in scores) == 4
    assert [row["is_anomalous"] for row in done.predictions].count("1") == 4
    assert f"cup: an image is anomalous above {scores[4]:.4g}, as was given" in page


@pytest.mark.slow
@pytest.mark.parametrize("place", [5, 11, 11.5, 5.5, -1])
def test_the_curve_has_a_point_for_the_decisions(cli: Cli, golden_a: Golden, tmp_path: Path, place: float) -> None:
    """The page reads rates off the curve: at the threshold they are those of metrics.json, also beyond all scores."""
    draw(tmp_path / "all" / "good", 7)
    draw(tmp_path / "all" / "bad", 5)
    options = [*golden_backbone(golden_a), "data@test_data=folder", f"test_data.root={tmp_path / 'all'}"]
    options += ["test_data.category=cup", "test_data.normal_dir=good", "test_data.anomalous_dir=bad"]
    first = cli.ok("eval", *options, name="first")
    scores = sorted(float(row["single_score"]) for row in first.predictions)
    threshold = (
        float(np.interp(place, range(len(scores)), scores)) + (1e-3 if place == 11.5 else 0) - (place < 0) * 1e-3
    )
    run, description, _ = described(cli, "eval", *options, f"threshold={threshold!r}", PROBE, name="decided")
    found, curve = run.metrics["categories"]["cup"], description.curves["cup"]["single"]
    at = curve["threshold"].index(description.cards["cup"]["thresholds"]["single"])
    assert curve["threshold"] == sorted(curve["threshold"], reverse=True)
    assert (curve["fpr"][at], curve["recall"][at]) == (found["false_alarms"], pytest.approx(1 - found["escapes"]))
    called = sum(score > threshold for score in scores)
    hits = round(5 * (1 - found["escapes"]))
    assert curve["precision"][at] == (hits / called if called else 1.0)
