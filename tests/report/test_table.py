"""The table of results and its notes."""

from __future__ import annotations

import pytest

from src.metrics.benchmark_metrics import BenchmarkResult
from src.report.table import print_table, rows_of

RESULT: BenchmarkResult = {
    "mean": {"pixel_AUROC": 0.5, "image_AUROC": 0.7125, "pixel_AUPRO": 0.25},
    "categories": {
        "bottle": {"image_AUROC": 0.9, "pixel_AUROC": 0.5, "pixel_AUPRO": 0.25, "vanished_masks": 2, "other": 9.0},
        "a.b": {"image_AUROC": 0.525, "image_F1Max_threshold": 0.1},
    },
}


def printed(result: BenchmarkResult, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_table(result, "train X -> test Y")
    return capsys.readouterr().out.splitlines()


def test_rows_are_the_metrics_that_are_there_in_their_usual_order() -> None:
    assert rows_of(RESULT) == [
        ["category", "image_AUROC", "pixel_AUROC", "pixel_AUPRO"],
        ["bottle", 0.9, 0.5, 0.25],
        ["a.b", 0.525, None, None],
        ["mean", 0.7125, 0.5, 0.25],
    ]


def test_table_is_in_percent_and_a_metric_that_is_absent_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    first, *lines = printed(RESULT, capsys)
    assert first == "train X -> test Y"
    cells = {words[1]: words[3::2] for words in (line.split() for line in lines) if len(words) == 9}
    assert cells.pop("category") == ["AUROC", "AUROC", "AUPRO"]
    assert cells == {
        "bottle": ["90.0", "50.0", "25.0"],
        "a.b": ["52.5", "-", "-"],
        "mean": ["71.2", "50.0", "25.0"],
    }


def test_notes_say_what_vanished_and_which_means_are_partial(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(RESULT, capsys)[-1] == (
        "in percent; 2 masks vanish at the evaluation size (see test_data.eval_size); "
        "not every category can give pixel_AUROC, pixel_AUPRO: those means are over the ones that can"
    )


def test_notes_say_which_masks_were_empty_from_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    categories = {"bottle": {"image_AP": 1.0, "vanished_masks": 0, "empty_masks": 2}}
    notes = printed({"mean": {"image_AP": 1.0}, "categories": categories}, capsys)[-1]
    assert notes == "in percent; 2 masks of anomalous images are empty on disk"


def test_vanished_masks_are_added_over_the_categories(capsys: pytest.CaptureFixture[str]) -> None:
    categories = {name: {"image_AP": 1.0, "vanished_masks": count} for name, count in (("a", 3), ("b", 4))}
    notes = printed({"mean": {"image_AP": 1.0}, "categories": categories}, capsys)[-1]
    assert notes == "in percent; 7 masks vanish at the evaluation size (see test_data.eval_size)"


def test_nothing_to_note(capsys: pytest.CaptureFixture[str]) -> None:
    categories = {"bottle": {"image_AP": 0.5, "vanished_masks": 0}}
    assert printed({"mean": {"image_AP": 0.5}, "categories": categories}, capsys)[-1] == "in percent"


def test_own_metrics_follow_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    result: BenchmarkResult = {
        "mean": {"image_AP": 0.75, "mean_absolute_error": 12345.678, "[dice]": 0.8},
        "categories": {
            "a": {"image_AP": 0.5, "mean_absolute_error": 12345.678, "[dice]": 0.812345},
            "b": {"image_AP": 1.0, "[dice]": 0.787655},
        },
    }
    lines = printed(result, capsys)
    assert any("[dice]" in line.split() and "mean_absolute_error" in line.split() for line in lines[:-1])
    cells = {words[1]: words[3::2] for words in (line.split() for line in lines) if len(words) == 9}
    assert cells["a"] == ["50.0", "1.235e+04", "0.8123"]
    assert cells["b"] == ["100.0", "-", "0.7877"]
    assert cells["mean"] == ["75.0", "1.235e+04", "0.8"]
    assert lines[-1] == (
        "in percent; mean_absolute_error, [dice] as computed; "
        "not every category can give mean_absolute_error: those means are over the ones that can"
    )


def test_no_column_is_cut_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"metric_of_my_own_{number}" for number in range(20)]
    values = dict.fromkeys(names, 0.123456)
    lines = printed({"mean": values, "categories": {"bottle": values}}, capsys)
    assert any(all(name in line for name in names) for line in lines[:-1])


def test_notes_name_the_categories_of_which_a_histogram_took_over(capsys: pytest.CaptureFixture[str]) -> None:
    categories = {"a": {"pixel_AP": 0.5, "pixel_AP_error": 0.001}, "b": {"pixel_AP": 0.5}}
    print_table({"mean": {"pixel_AP": 0.5}, "categories": categories}, "title")
    assert "pixel metrics of a come from a histogram" in capsys.readouterr().out
