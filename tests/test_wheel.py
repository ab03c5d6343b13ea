"""What is installed from a wheel works from any folder, without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.clip.backbone import Backbone, find_backbone
from tests.golden_reference import ROOT

SCRIPTS = ("train", "eval", "predict", "reproduce", "collect", "merge", "demo")


def run(*command: str | Path, folder: Path, target: Path | None = None) -> str:
    """Run a command of this environment in a folder; packages below `target` come before those of the environment."""
    path = {"PYTHONPATH": str(target)} if target else {}
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | path
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed, without its dependencies, which this environment has."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building leaves files beside the sources
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("conf", "src", "datamodules", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, source, folder=folder)
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", *offline, "--target", folder / "installed", wheel, folder=folder)
    return folder / "installed"


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
def test_the_demo_runs_from_an_empty_folder(installed: Path, empty: Path) -> None:
    where = "import src.overrides, experiments; print(src.__file__, src.overrides.CONF, experiments.__file__)"
    for path in run(sys.executable, "-c", where, folder=empty, target=installed).split():
        assert Path(path).is_relative_to(installed)
    options = ("+exp=sdp_demo", "test_data.categories=[nut]", "trainer=cpu", "paths.output_dir=run")
    out = run(sys.executable, "-m", "src.eval", *options, folder=empty, target=installed)
    assert out.startswith("no training (frozen CLIP) -> test demo data")
    metrics = json.loads((empty / "run" / "metrics.json").read_text())
    assert metrics["categories"]["nut"]["image_AUROC"] > 0.5  # the CLIP that was trained for it, not a random one


@pytest.mark.slow
def test_each_command_has_a_script(installed: Path, empty: Path) -> None:
    for name, part in (("train", "sdp_demo"), ("eval", "sdp_demo"), ("predict", "sdp_demo"), ("merge", "usage")):
        assert part in run(installed / "bin" / f"clip-ad-{name}", "--help", folder=empty, target=installed)
    assert sorted(path.name for path in (installed / "bin").iterdir()) == sorted(f"clip-ad-{name}" for name in SCRIPTS)
