"""Anomaly maps as files."""

from __future__ import annotations

import io
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
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "maps"
        self._written: set[Path] = set()

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
        self._write(outputs["scores"], batch)

    on_predict_batch_end = on_test_batch_end

    def _write(self, scores: Scores, batch: dict[str, Any]) -> None:
        maps = scores.anomaly_map.float().cpu().numpy()  # (B, H, W)
        for category, image_path, anomaly_map in zip(batch["category"], batch["image_path"], maps, strict=True):
            content = io.BytesIO()
            np.save(content, anomaly_map)
            write_bytes(self._target(category, Path(image_path)), content.getvalue())

    def _target(self, category: str, source: Path) -> Path:
        """The file of an image's map. Two images of a deep folder may ask for one name: the second is spelt out."""
        target = self.folder / category / source.parent.name / f"{source.stem}.npy"
        if target in self._written:
            target = self.folder / category / source.with_name(f"{source.name}.npy")
        self._written.add(target)
        return target
