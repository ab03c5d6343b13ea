"""What a prediction shows of its progress, on a terminal and in a log."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from datamodules.photos import Photos
from src.callbacks import progress
from src.callbacks.progress import ImageProgress


def trainer_of(folder: Path, count: int) -> Any:
    for number in range(count):
        Image.new("RGB", (4, 4)).save(folder / f"{number}.png")
    data = Photos(folder, category="cup", num_workers=0)
    data.leave_out([("cup", "0.png")])
    return SimpleNamespace(datamodule=data, world_size=1, global_rank=0)


def show(bar: ImageProgress, trainer: Any) -> None:
    bar.on_predict_start(trainer, None)  # type: ignore[arg-type]
    bar.on_predict_batch_end(trainer, None, None, {"category": ["cup"] * 3}, 0)  # type: ignore[arg-type]
    unreadable = {"category": [], "unreadable": [("cup", "4.png", "cut off")]}
    bar.on_predict_batch_end(trainer, None, None, unreadable, 1)  # type: ignore[arg-type]


def test_a_terminal_shows_images_done_and_left(tmp_path: Path) -> None:
    screen = io.StringIO()
    bar = ImageProgress(Console(file=screen, force_terminal=True, width=100))
    trainer = trainer_of(tmp_path, 9)
    show(bar, trainer)
    bar.on_predict_end(trainer, None)  # type: ignore[arg-type]
    last = screen.getvalue().split("images")[-3:]
    last = "images".join(last)  # of what is drawn over itself, the last time
    assert "4/8" in last  # one of nine was done before, and one of four can't be read
    assert "images/s" in last
    assert "left" in last


def test_a_log_has_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    screen = io.StringIO()
    bar = ImageProgress(Console(file=screen, force_terminal=False))
    trainer = trainer_of(tmp_path, 9)
    bar.on_predict_start(trainer, None)  # type: ignore[arg-type]
    for seconds in (10, 10, 15, 10):
        clock[0] += seconds
        bar.on_predict_batch_end(trainer, None, None, {"category": ["cup"]}, 0)  # type: ignore[arg-type]
    bar.on_predict_end(trainer, None)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "3 of 8 images, 0.1 images/s, 58 s left\n"
    assert screen.getvalue() == ""


def test_each_process_counts_its_own_batches(tmp_path: Path) -> None:
    """Of nine images one is done: eight in batches of three are 3 and 5 for two processes."""
    trainer = trainer_of(tmp_path, 9)
    trainer.datamodule.batch_size, trainer.world_size = 3, 2
    screen = io.StringIO()
    bar = ImageProgress(Console(file=screen, force_terminal=True, width=100))
    bar.on_predict_start(trainer, None)  # type: ignore[arg-type]
    bar.on_predict_end(trainer, None)  # type: ignore[arg-type]
    assert "0/3" in screen.getvalue()
