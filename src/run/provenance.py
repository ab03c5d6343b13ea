"""`provenance.json`: everything needed to say what a run was, and to run it again."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer

from src.identity import versions_of
from src.overrides import typed

_PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "open_clip_torch",
    "hydra-core",
    "torchmetrics",
    "albumentations",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "wandb",
)

_CODE = ("conf", "src", "datamodules", "experiments")


def describe_code() -> dict[str, Any]:
    """The commit this code is at and whether it was changed since; both None outside a checkout.

    A new file is a change if it is Python or lies among code and configuration: results beside them are none.

    Example:
        >>> sorted(describe_code())
        ['commit', 'dirty']
    """
    folder = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    if git("rev-parse", "--show-toplevel") != str(folder):  # an installed package may lie in another checkout
        return {"commit": None, "dirty": None}
    changed = git("status", "--porcelain", "--untracked-files=no")
    new = git("ls-files", "--others", "--exclude-standard", "--", "*.py", *_CODE)
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed or new)}


def describe_packages() -> dict[str, str]:
    """Versions of Python and of the packages that a number can depend on.

    Example:
        >>> describe_packages()["torch"] == versions_of(["torch"])["torch"]
        True
    """
    return {package: version for package, version in versions_of(_PACKAGES).items() if version is not None}


def describe_device(trainer: Trainer) -> dict[str, Any]:
    """Where the run computes, and in which precision it really does.

    Example:
        >>> device = describe_device(Trainer(accelerator="cpu", logger=False))
        >>> device["type"], device["precision"], device["processes"]
        ('cpu', '32-true', 1)
    """
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "type": device.type,
        "name": name,
        "precision": str(trainer.precision),
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def describe_command() -> str:
    """The command line, such as `python -m src.train +exp=sdp_visa`; of a sweep's trial, its own."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is not None and hydra.mode == RunMode.MULTIRUN:
        return shlex.join(["python", "-m", f"src.{hydra.job.config_name}", *map(typed, hydra.overrides.task)])
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {module.name}" if module is not None else shlex.quote(sys.argv[0])
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def now() -> str:
    """The time in UTC.

    Example:
        >>> datetime.fromisoformat(now()).utcoffset().total_seconds()
        0.0
    """
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
