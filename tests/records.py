"""What a run says about itself, for tests that make folders by hand."""

from __future__ import annotations

from typing import Any

USE: dict[str, Any] = {
    "name": "visa",
    "title": "VisA",
    "split": "test",
    "categories": ["candle"],
    "held_out": [],
    "images": 2162,
    "is_whole": True,
}
CONFIG: dict[str, Any] = {
    "seed": 42,
    "test_data": {"root": "data", "categories": None},
    "train_data": None,
    "model": {"smoothing_sigma": 8, "feature_layers": [3, 6, 9, 12]},
    "backbone": {"name": "tiny", "pretrained": None},
    "trainer": {"max_epochs": 5, "precision": "32-true", "accelerator": "cpu", "devices": 1},
    "paths": {"output_dir": "outputs"},
    "logger": None,
    "callbacks": {},
}


def data_of(sha256: str) -> dict[str, Any]:
    """A data set's identity."""
    counts = {"images": 2, "normal": 1, "anomalous": 1, "bytes": 30}
    return {"categories": {"candle": counts}, "files": 3, "bytes": 30, "sha256": sha256, "missing_categories": []}


DESCRIBED: dict[str, Any] = {
    "kind": "eval",
    "command": "python -m src.eval",
    "protocol": {
        "line": "no training (frozen CLIP) -> test VisA (2162 images)",
        "trained_on": None,
        "tested_on": USE,
        "leaked_categories": [],
        "cut_short_by": [],
        "training_cut_short_by": [],
    },
    "seed": 42,
    "code": {"commit": "c", "dirty": False},
    "packages": {"torch": "2.4"},
    "device": {
        "type": "cpu",
        "name": "x86_64",
        "precision": "32-true",
        "processes": 1,
        "threads": 2,
        "platform": "Linux",
    },
    "data": {"test": data_of("a")},
    "backbone": {"name": "tiny", "tag": None, "file": "clip.pt", "sha256": "b"},
    "checkpoint": None,
}
"""What `RunFolder.describe` is told."""

PROVENANCE: dict[str, Any] = {"started": "2026", "resumed": [], "finished": "2026", "config": CONFIG, **DESCRIBED}
