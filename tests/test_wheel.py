"""What is installed from a wheel works from any folder, without the checkout."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.clip.backbone import Backbone, find_backbone
from tests.golden_reference import ROOT

SCRIPTS = ("train", "eval", "predict", "calibrate", "reproduce", "collect", "merge", "demo")


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in a folder, and return what it prints; if it fails, all of that is shown."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of a new environment, which has the wheel and what pip installs for it: 6 GB, until it is removed.

    Nothing is compiled ahead, since most of it is never imported here.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building leaves files beside the sources
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("conf", "src", "datamodules", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = ("-m", "pip", "--disable-pip-version-check")
    run(
        sys.executable,
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        f"--wheel-dir={folder}",
        source,
        folder=folder,
    )
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    try:
        run(sys.executable, "-m", "venv", environment, folder=folder)
        tested = ROOT / "constraints.txt"
        run(environment / "bin" / "python", *pip, "install", "--no-compile", "-c", tested, wheel, folder=folder)
        yield environment / "bin"
    finally:
        shutil.rmtree(environment, ignore_errors=True)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_the_demos_clip_is_found_from_any_folder(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(empty)
    place = "package:experiments/demo_backbone"
    source = find_backbone("demo-clip", f"{place}/demo_clip.safetensors", f"{place}/architecture.json")
    assert Backbone(source).architecture.depth == 4


@pytest.mark.slow
def test_the_demo_runs_in_a_new_environment_from_an_empty_folder(bin_folder: Path, empty: Path) -> None:
    where = "import torch, src.overrides as ours, experiments; print(torch.__file__, ours.CONF, experiments.__file__)"
    for path in run(bin_folder / "python", "-c", where, folder=empty).split():
        assert Path(path).is_relative_to(bin_folder.parent)
    options = ("+exp=sdp_demo", "test_data.categories=[nut]", "trainer=cpu", "paths.output_dir=run")
    out = run(bin_folder / "clip-ad-eval", *options, folder=empty)
    assert out.startswith("no training (frozen CLIP) -> test demo data")
    metrics = json.loads((empty / "run" / "metrics.json").read_text())
    assert metrics["categories"]["nut"]["image_AUROC"] > 0.5  # the CLIP that was trained for it, not a random one


@pytest.mark.slow
def test_own_images_in_a_new_environment_from_an_empty_folder(bin_folder: Path, empty: Path) -> None:
    """The way of a new user: photos, a calibration, decisions, three lines of Python."""
    drawn = "from datamodules.demo.generate import demo_data; demo_data('drawn')"
    run(bin_folder / "python", "-c", drawn, folder=empty)
    (root,) = (empty / "drawn").iterdir()
    common = ("+exp=sdp_demo", "category=metal nut", "trainer=cpu")
    good = f"source={root / 'nut' / 'test' / 'good'}"
    run(bin_folder / "clip-ad-predict", *common, good, "paths.output_dir=first", folder=empty)
    out = run(
        bin_folder / "clip-ad-calibrate", *common, good, "max_false_alarms=0.1", "paths.output_dir=c", folder=empty
    )
    assert "metal nut: anomalous above" in out
    photos = (f"source={root / 'nut' / 'test'}", "threshold=c/calibration.json", "save_overlays=true")
    run(bin_folder / "clip-ad-predict", *common, *photos, "paths.output_dir=second", folder=empty)
    with (empty / "second" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > sum(int(row["is_anomalous"]) for row in rows) > 0
    assert all((empty / "second" / row["overlay"]).is_file() for row in rows)
    python = (
        "from src import AnomalyDetector\n"
        "detector = AnomalyDetector.from_experiment('sdp_demo')\n"
        f"photo = {str(root / 'nut/test' / rows[0]['image_path'])!r}\n"
        "print(detector.predict(photo, category='metal nut')[0].single_score)"
    )
    score = float(run(bin_folder / "python", "-c", python, folder=empty))
    assert score == pytest.approx(float(rows[0]["single_score"]), abs=1e-6)


@pytest.mark.slow
def test_each_command_has_a_script(bin_folder: Path, empty: Path) -> None:
    for name, part in (("train", "sdp_demo"), ("eval", "sdp_demo"), ("predict", "sdp_demo"), ("merge", "usage")):
        assert part in run(bin_folder / f"clip-ad-{name}", "--help", folder=empty)
    scripts = sorted(path.name for path in bin_folder.glob("clip-ad-*"))
    assert scripts == sorted(f"clip-ad-{name}" for name in SCRIPTS)
