"""Anomaly maps as files."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from src.files import write_bytes
from src.models.method import Scores


class MapWriter(Callback):
    """Writes each smoothed map at the model's size as `maps/<category>/<image's folder>/<image>.npy`, float32.

    Args:
        folder: the run's folder.
        images: category and path of every image that may come, in file order; all processes know all of them, so that
            no two write to one name.
    """

    def __init__(self, folder: Path, images: Iterable[tuple[str, str]]) -> None:
        self.folder = folder / "maps"
        self._names = map_names(images)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the maps of a batch."""
        if outputs:  # of a filler there are none
            self._write(outputs["scores"], batch)

    on_predict_batch_end = on_test_batch_end

    def _write(self, scores: Scores, batch: dict[str, Any]) -> None:
        maps = scores.anomaly_map.float().cpu().numpy()  # (B, H, W)
        for category, image_path, anomaly_map in zip(batch["category"], batch["image_path"], maps, strict=True):
            content = io.BytesIO()
            np.save(content, anomaly_map)
            write_bytes(self.folder / self._names[category, image_path], content.getvalue())


def map_names(images: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """The file below `maps/` of each (category, image path). Of two that ask for one name the second is spelt out."""
    names: dict[tuple[str, str], Path] = {}
    taken: set[Path] = set()
    for category, image_path in images:
        source = Path(image_path)
        name = Path(category, source.parent.name, f"{source.stem}.npy")
        if name in taken:
            name = category / source.with_name(f"{source.name}.npy")
        taken.add(name)
        names[category, image_path] = name
    return names
