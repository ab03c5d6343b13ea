"""Several processes give what one gives; a run that is killed goes on. Real processes, as a user starts them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli import NO_REPORT
from tests.report.pages import facts_of, pictures_of

ROOT = Path(__file__).parents[1]
# 27 batches to train on, of which the last has fewer images than there are processes.
TRAIN = [
    "+exp=sdp_plus_demo",
    "train_data.categories=[fabric,wood]",
    "test_data.categories=[coin,nut]",
    "train_data.batch_size=5",
    "test_data.batch_size=5",
    "trainer.max_epochs=2",
    "feature_cache.enabled=false",  # each process has to run the tower itself
]

pytestmark = pytest.mark.slow


def start(command: str, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", f"src.{command}", *overrides, f"paths.output_dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(command: str, folder: Path, *overrides: str) -> str:
    process = start(command, folder, *overrides)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def metrics_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return {f"{name}/{metric}": v for name, c in result["categories"].items() for metric, v in c.items()}


def losses_of(folder: Path) -> list[float]:
    (path,) = folder.rglob("metrics.csv")
    with path.open(newline="") as file:
        return [float(row["train/loss_epoch"]) for row in csv.DictReader(file) if row.get("train/loss_epoch")]


@pytest.fixture(scope="module")
def quiet(demo: list[str]) -> list[str]:
    return [*TRAIN, *shown(demo)]


def shown(options: list[str]) -> list[str]:
    """The options, with a page."""
    return [option for option in options if option != NO_REPORT]


def pages_agree(folder: Path, other: Path) -> bool:
    """Whether the pages show the same cases, each with a picture, and figures that differ by rounding only."""
    one, two = (facts_of(path)["cases"] for path in (folder, other))
    assert [case["image_path"] for case in one] == [case["image_path"] for case in two]
    for key in ("single_score", "pixel_ap", "mask_share"):
        assert [case[key] for case in one] == pytest.approx([case[key] for case in two], abs=1e-4)
    return pictures_of(folder).keys() == pictures_of(other).keys() == {str(case["id"]) for case in two}


@pytest.fixture(scope="module")
def alone(quiet: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "1"
    run("train", folder, *quiet)
    return folder


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_train_and_test_as_one_does(
    processes: int, quiet: list[str], alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}"]
    out = run("train", folder, *(o for o in quiet if o != "trainer=cpu"), *ddp)
    assert out.count("results in") == 1
    assert out.splitlines()[0].startswith("train demo data")
    assert losses_of(folder) == pytest.approx(losses_of(alone), rel=1e-5)
    assert metrics_of(folder) == pytest.approx(metrics_of(alone), abs=1e-6)
    rows, expected = ((f / "predictions.csv").read_text().splitlines() for f in (folder, alone))
    assert [row.split(",")[:3] for row in rows] == [row.split(",")[:3] for row in expected]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["device"]["processes"] == processes
    assert pages_agree(folder, alone)
    assert not list(folder.glob(".*.tmp"))


def test_a_process_without_an_image_takes_part_in_a_prediction(
    demo: list[str], demo_data: Path, tmp_path: Path
) -> None:
    [images] = demo_data.glob("demo/*/coin/test")
    own = [
        "+exp=sdp_demo",
        *shown(demo),
        f"test_data.root={images}",
        "test_data.category=coin",
        "test_data.batch_size=100",
    ]
    run("predict", tmp_path / "1", *own)
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    run("predict", tmp_path / "2", *(option for option in own if option != "trainer=cpu"), *ddp)
    one, two = ((tmp_path / name / "predictions.csv").read_text().splitlines() for name in "12")
    assert one == two
    assert len(one) > 40
    assert pictures_of(tmp_path / "1") == pictures_of(tmp_path / "2")


def test_a_run_killed_within_an_epoch_ends_as_if_it_had_not_been(quiet: list[str], alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("train", folder, *quiet)
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)  # the first epoch's checkpoint is there, and the second epoch has begun
    process.communicate()
    assert not (folder / "metrics.json").exists()
    run("train", folder, *quiet)
    assert (folder / "metrics.json").read_bytes() == (alone / "metrics.json").read_bytes()
    assert (folder / "predictions.csv").read_bytes() == (alone / "predictions.csv").read_bytes()
