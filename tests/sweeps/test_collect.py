"""A sweep's table, from folders made by hand."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from src.sweeps.collect import main
from tests.golden_reference import ROOT
from tests.records import PROVENANCE

SWEEP = {"command": "train", "overrides": [], "sweeper": {}, "objective": "pixel_AP on held-out gear"}


def of_protocol(line: str) -> dict[str, Any]:
    return PROVENANCE | {"protocol": PROVENANCE["protocol"] | {"line": line}}


def write_trial(sweep: Path, number: int, overrides: list[str], mean: dict[str, float] | None, **trial: Any) -> None:
    folder = sweep / str(number)
    folder.mkdir(parents=True)
    content = {"number": number, "overrides": overrides, "status": "finished", "objective": None, "error": None}
    (folder / "trial.json").write_text(json.dumps(content | trial))
    if mean is not None:
        (folder / "metrics.json").write_text(json.dumps({"mean": mean, "categories": {}}))


def rows(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_are_averaged_and_the_best_setting_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {("8", "1"): 0.5, ("4", "1"): 0.8, ("8", "2"): 0.7, ("4", "2"): 0.2, ("8", "3"): 0.9, ("4", "3"): 0.2}
    for number, ((sigma, seed), score) in enumerate(scores.items()):
        overrides = ["+exp=sdp_demo", f"model.smoothing_sigma={sigma}", f"seed={seed}", f"paths.output_dir={tmp_path}"]
        write_trial(tmp_path, number, overrides, {"image_AUROC": score, "pixel_AP": 1 - score})
    assert main([str(tmp_path)]) == 0
    table = rows(tmp_path)
    assert list(table[0]) == ["trial", "model.smoothing_sigma", "seed", "image_AUROC", "pixel_AP", "best_in", "note"]
    assert [row["trial"] for row in table] == ["0", "2", "4", "mean of 3", "std", "1", "3", "5", "mean of 3", "std"]
    # 0.5, 0.7, 0.9: the deviations are -0.2, 0 and 0.2, the sample variance is 0.08 / 2.
    assert [float(row["image_AUROC"]) for row in table[3:5]] == pytest.approx([0.7, 0.2])
    assert [float(row["image_AUROC"]) for row in table[8:]] == pytest.approx([0.4, 0.12**0.5])
    # Seed 1 of sigma 4 is better than the mean of sigma 8, but the best seed is no setting.
    marked = {name: [row["model.smoothing_sigma"] for row in table if name in row["best_in"]] for name in table[0]}
    assert marked["image_AUROC"] == ["8"]
    assert marked["pixel_AP"] == ["4"]
    assert table[3]["best_in"] == "image_AUROC"
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "trials.md").read_text()
    assert "| mean of 3 | 8 |  | **70.00** | 30.00 |" in printed
    assert "exp=sdp_demo" in printed
    assert "must select nothing" in printed
    assert "output_dir" not in printed


def test_the_objective_alone_chooses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP))
    write_trial(tmp_path, 0, ["optimizer.lr=0.1"], {"pixel_AP": 0.9}, objective=0.2)
    write_trial(tmp_path, 1, ["optimizer.lr=0.20000412"], {"pixel_AP": 0.1}, objective=0.3)
    assert main([str(tmp_path)]) == 0
    assert [(row["objective"], row["best_in"]) for row in rows(tmp_path)] == [("0.2", ""), ("0.3", "objective")]
    assert rows(tmp_path)[1]["optimizer.lr"] == "0.20000412"
    printed = capsys.readouterr().out
    assert "pixel_AP on held-out gear" in printed
    assert "| 1 | 0.2 | **30.00** | 10.00 |" in printed


def test_own_metrics_stand_as_they_are_and_choose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (ap, loss) in enumerate([(0.5, 12.34567), (0.25, 20.0)]):
        write_trial(tmp_path, number, [f"model.smoothing_sigma={number}"], {"pixel_AP": ap, "squared_error": loss})
    assert main([str(tmp_path)]) == 0
    assert [(row["squared_error"], row["best_in"]) for row in rows(tmp_path)] == [
        ("12.34567", "pixel_AP"),
        ("20.0", ""),
    ]
    assert "| 0 | 0 | **50.00** | 12.35 |  |" in capsys.readouterr().out


def test_metrics_of_two_benchmarks_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["train VisA (test split, 2162 images) -> test MVTec AD (1725 images)"] * 2 + ["no training -> test VisA"]
    for number, line in enumerate(lines):
        write_trial(tmp_path, number, [f"model.smoothing_sigma={number}"], {"pixel_AP": 0.1 * number})
        (tmp_path / str(number) / "provenance.json").write_text(json.dumps(of_protocol(line)))
    assert main([str(tmp_path)]) == 0
    assert [row["protocol"] for row in rows(tmp_path)] == lines
    assert not any(row["best_in"] for row in rows(tmp_path))
    (tmp_path / "2" / "provenance.json").unlink()  # it failed before it could say
    capsys.readouterr()
    assert main([str(tmp_path)]) == 0
    assert "protocol" not in rows(tmp_path)[0]
    assert lines[0] in capsys.readouterr().out.splitlines()


def test_failed_and_unfinished_trials_are_listed_and_not_averaged(tmp_path: Path) -> None:
    write_trial(tmp_path, 10, ["seed=4"], {"pixel_AP": 0.4})
    write_trial(tmp_path, 9, ["seed=3"], {"pixel_AP": 0.2})
    write_trial(tmp_path, 2, ["seed=2"], None, status="running")
    write_trial(tmp_path, 1, ["seed=1"], None, status="failed", error="no GPU")
    write_trial(tmp_path, 3, ["seed=5"], None)
    (tmp_path / "3").rename(tmp_path / "3-reproduced-1")
    assert main([str(tmp_path)]) == 0
    table = rows(tmp_path)
    assert [row["trial"] for row in table] == ["1", "2", "9", "10", "mean of 2", "std"]
    assert [row["note"] for row in table[:3]] == ["failed: no GPU", "unfinished", ""]
    assert float(table[4]["pixel_AP"]) == pytest.approx(0.3)
    assert all(row["best_in"] == "" for row in table)
    assert "4 trials, 1 failed, 1 running" in (tmp_path / "trials.md").read_text()


def test_a_folder_without_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([str(tmp_path)], [str(tmp_path / "nowhere")], []):
        assert main(arguments) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: expected")


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, src.sweeps.collect; print(*(m for m in ('torch', 'lightning') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
