"""What provenance.json says about code, packages and command, against git and the packages themselves."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import albumentations
import lightning
import numpy as np
import pytest
import torch
from lightning import Trainer

from src.run import provenance

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in whose folder `src/report` the code lies."""
    file = tmp_path / "checkout" / "src" / "report" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("# code\n")
    monkeypatch.setattr(provenance, "__file__", str(file))
    root = tmp_path / "checkout"
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "one")
    return root


def test_commit_is_gits() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    lines = git(ROOT, "status", "--porcelain", "--untracked-files=all").splitlines()
    code = ("?? conf/", "?? src/", "?? datamodules/", "?? experiments/")
    changes = [line for line in lines if not line.startswith("?? ") or line.startswith(code) or line.endswith(".py")]
    assert provenance.describe_code() == {"commit": git(ROOT, "rev-parse", "HEAD"), "dirty": changes != []}


def test_code_is_clean_until_something_changes(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert provenance.describe_code() == {"commit": commit, "dirty": False}
    (checkout / "src" / "report" / "provenance.py").write_text("# changed\n")
    assert provenance.describe_code() == {"commit": commit, "dirty": True}


@pytest.mark.parametrize("name", ["new.py", "mine/deeper/new.py", "src/table.txt", "conf/exp/new.yaml"])
def test_new_code_makes_code_dirty(checkout: Path, name: str) -> None:
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).touch()
    assert provenance.describe_code()["dirty"] is True


def test_results_in_the_checkout_do_not_make_code_dirty(checkout: Path) -> None:
    for name in ("parts/1/metrics.json", "parts/1/config/eval.yaml", "whole.log"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    assert provenance.describe_code()["dirty"] is False


def test_outside_a_checkout_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "installed").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "installed" / "provenance.py"))
    assert provenance.describe_code() == {"commit": None, "dirty": None}


def test_without_git_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.describe_code() == {"commit": None, "dirty": None}


def test_packages_have_the_versions_that_are_imported() -> None:
    packages = provenance.describe_packages()
    assert packages["python"] == platform.python_version()
    for name, module in (("lightning", lightning), ("numpy", np), ("albumentations", albumentations)):
        assert packages[name] == module.__version__
    assert packages["torch"] == torch.__version__.split("+")[0] or packages["torch"] == torch.__version__
    assert packages["open_clip_torch"].startswith("3.")


def test_a_package_that_is_absent_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("numpy", "no-such-package"))
    assert provenance.describe_packages().keys() == {"python", "numpy"}


def test_device_and_precision_are_the_trainers() -> None:
    trainer = Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False)
    device = provenance.describe_device(trainer)
    assert (device["type"], device["precision"], device["processes"]) == ("cpu", "bf16-mixed", 1)
    assert device["threads"] == torch.get_num_threads()
    assert device["name"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ModuleSpec("src.train", None), "python -m src.train +exp=sdp_visa 'paths.output_dir=/tmp/a b' 'x=[1,2]'"),
        (None, "'/opt/a tool' +exp=sdp_visa 'paths.output_dir=/tmp/a b' 'x=[1,2]'"),
    ],
    ids=["module", "script"],
)
def test_command_can_be_pasted_into_a_shell(
    spec: ModuleSpec | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    main.__spec__ = spec
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["/opt/a tool", "+exp=sdp_visa", "paths.output_dir=/tmp/a b", "x=[1,2]"])
    assert provenance.describe_command() == expected


def test_now_is_in_utc() -> None:
    written = datetime.fromisoformat(provenance.now())
    assert written.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - written) < timedelta(seconds=10)
