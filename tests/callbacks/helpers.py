"""Batches and scores as a test step hands them to the callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from lightning import Callback

from src.models.method import Scores

Stage = Literal["test", "predict"]
NOBODY = cast(Any, None)  # a test's callbacks use neither trainer nor module


def lonely(image_names: Sequence[tuple[str, str]]) -> Any:
    """A trainer of one process, whose images have these categories and paths."""
    strategy = SimpleNamespace(barrier=lambda name: None)
    return SimpleNamespace(global_rank=0, strategy=strategy, datamodule=SimpleNamespace(image_names=list(image_names)))


def scores_of(cls_score: Sequence[float], map_max: Sequence[float], size: int = 4) -> Scores:
    """Maps whose maximum is `map_max`."""
    top = torch.tensor(map_max, dtype=torch.float32)
    ramp = torch.linspace(0, 1, size * size).view(1, size, size)
    prob = torch.tensor(cls_score, dtype=torch.float32)
    return Scores(top[:, None, None] * ramp, {"cls_score": prob, "map_max": top}, prob + top)


def batch_of(category: str, paths: Sequence[str], labels: Sequence[int] | None = None) -> dict[str, Any]:
    batch: dict[str, Any] = {"category": [category] * len(paths), "image_path": list(paths)}
    return batch if labels is None else batch | {"label": torch.tensor(labels)}


def give(callback: Callback, stage: Stage, scores: Scores, batch: dict[str, Any], trainer: Any = NOBODY) -> None:
    getattr(callback, f"on_{stage}_batch_end")(trainer, NOBODY, {"scores": scores}, batch, 0)


def end(callback: Callback, stage: Stage, trainer: Any = NOBODY) -> None:
    if stage == "test":
        callback.on_test_end(trainer, NOBODY)
    else:
        callback.teardown(trainer, NOBODY, "predict")
