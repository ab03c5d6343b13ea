"""Anomaly maps as files."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from datamodules.paths import below
from src.files import write_bytes
from src.models.method import Scores


class MapWriter(Callback):
    """Writes each smoothed map at the model's size as `maps/<category>/<image's folder>/<image>.npy`, float32.

    Args:
        enabled: whether to write anything.

    Example:
        >>> trainer = Trainer(callbacks=[MapWriter()], default_root_dir="outputs/mine", logger=False)
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the map of every image that may come: all processes know all, so that no two write to one name."""
        if self.enabled:
            self.folder = Path(trainer.default_root_dir) / "maps"
            self._names = map_names(trainer.datamodule.image_names)  # type: ignore[attr-defined]

    on_predict_start = on_test_start

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
        if self.enabled and outputs:  # of a filler there are none
            self._write(outputs["scores"], batch)

    on_predict_batch_end = on_test_batch_end

    def _write(self, scores: Scores, batch: dict[str, Any]) -> None:
        maps = scores.anomaly_map.float().cpu().numpy()  # (B, H, W)
        for category, image_path, anomaly_map in zip(batch["category"], batch["image_path"], maps, strict=True):
            content = io.BytesIO()
            np.save(content, anomaly_map)
            write_bytes(self.folder / self._names[category, image_path], content.getvalue())


def map_names(images: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """The file below `maps/` of each (category, image path), another one for each of them.

    Of two that ask for one name the second is spelt out, and numbered if another image is called so.

    Raises:
        UserError: a name leads out of the folder.

    Example:
        >>> names = map_names([("cup", "broken/000.png"), ("cup", "broken/000.jpg")])
        >>> [str(name) for name in names.values()]
        ['cup/broken/000.npy', 'cup/broken/000.jpg.npy']
    """
    names: dict[tuple[str, str], Path] = {}
    files: set[Path] = set()
    folders: set[Path] = set()
    for category, image_path in images:
        source = Path(image_path)
        usual = Path(category, source.parent.name, f"{source.stem}.npy")
        numbered = (Path(category, f"{image_path}.{number}.npy") for number in count(2))
        for name in chain([usual, Path(category, f"{image_path}.npy")], numbered):
            as_stored = _as_stored(below(Path("maps"), name.as_posix(), "the name of a map"))
            if as_stored not in files and as_stored not in folders and files.isdisjoint(as_stored.parents):
                break
        files.add(as_stored)
        folders.update(as_stored.parents)
        names[category, image_path] = name
    return names


def _as_stored(name: Path) -> Path:
    """What a disk takes for the same name that ignores case, or writes accents in another way."""
    return Path(unicodedata.normalize("NFC", str(name)).casefold())
