"""The commands as a user types them, run in the test's process: starting Python anew costs 20 seconds each time."""

from __future__ import annotations

import csv
import json
import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra.core.hydra_config import HydraConfig

from tests.golden_reference import Golden

NO_REPORT = "callbacks.report=null"  # it takes a moment each time; its own tests leave this out


class Finished(NamedTuple):
    """What a command left: its exit code, what it printed, and the folder it wrote to."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "metrics.json").read_text()))

    @property
    def provenance(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "provenance.json").read_text()))

    @property
    def predictions(self) -> list[dict[str, str]]:
        with (self.folder / "predictions.csv").open(newline="") as file:
            return list(csv.DictReader(file))


class Cli:
    """Calls `python -m src.<command>` in this process.

    The golden CLIP, one process for loading and a quiet terminal are set unless an override says otherwise.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str] | None, folder: Path
    ) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        self.folder = folder

    def __call__(self, command: str, *overrides: str, name: str = "run") -> Finished:
        output = self.folder / name
        handlers = logging.getLogger().handlers[:]
        places = {"paths.output_dir": output, "paths.cache_dir": self.folder / "cache"}
        target = [f"{k}={path}" for k, path in places.items() if not any(o.startswith(f"{k}=") for o in overrides)]
        self.monkeypatch.setattr(sys, "argv", [f"src/{command}.py", *overrides, *target])
        code = 0
        try:
            import_module(f"src.{command}").main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            logging.getLogger().handlers[:] = handlers  # Hydra's hold this test's captured stdout
            HydraConfig.instance().cfg = None  # or what runs next would take itself for a part of this run
        out, err = self.capsys.readouterr() if self.capsys else ("", "")
        return Finished(code, out, err, output)

    def ok(self, command: str, *overrides: str, name: str = "run") -> Finished:
        """Run, and expect success."""
        done = self(command, *overrides, name=name)
        assert done.code == 0, done.err
        return done

    def error(self, command: str, *overrides: str, name: str = "run") -> str:
        """Run, and expect a single line on stderr and no traceback."""
        done = self(command, *overrides, name=name)
        lines = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
        assert done.code == 1, done.out
        assert len(lines) == 1, done.err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


def golden_backbone(golden: Golden) -> list[str]:
    """Overrides that run the golden CLIP on the CPU, without loader processes, a progress bar and a page."""
    return [
        f"backbone.config={golden.config_path}",
        f"backbone.pretrained={golden.weights_path}",
        "trainer=cpu",
        "~callbacks.progress",
        NO_REPORT,
        "+trainer.enable_progress_bar=false",
        "test_data.num_workers=0",
    ]
