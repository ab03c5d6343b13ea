"""Anomaly maps as files."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Collection, Iterable
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.paths import below
from src.files import write_bytes

MAPS = "maps"
OVERLAYS = "overlays"
_LONGEST = 150  # bytes of a folder's name; disks take 255


class MapWriter(Callback):
    """Writes each smoothed map as `maps/<category>/<image's folder>/<image>.npy`, float32.

    It has the model's size, or a larger one if it is blended from tiles.

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
            self.folder = Path(trainer.default_root_dir) / MAPS
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
            self._write(outputs.get("maps") or outputs["scores"].anomaly_map, batch)

    on_predict_batch_end = on_test_batch_end

    def keep(self, trainer: Trainer, names: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of the images whose maps an earlier part of this prediction has written."""
        if not self.enabled:
            return set(names)
        folder = Path(trainer.default_root_dir) / MAPS
        files = map_names(trainer.datamodule.image_names)  # type: ignore[attr-defined]
        return {name for name in names if (folder / files[name]).is_file()}

    def _write(self, anomaly_maps: Iterable[Tensor], batch: dict[str, Any]) -> None:
        maps = [one.float().cpu().numpy() for one in anomaly_maps]  # (H, W) each
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
        own = _as_folder(category)
        usual = Path(own, source.parent.name, f"{source.stem}.npy")
        numbered = (Path(own, f"{image_path}.{number}.npy") for number in count(2))
        for name in chain([usual, Path(own, f"{image_path}.npy")], numbered):
            as_stored = _as_stored(below(Path("maps"), name.as_posix(), "the name of a map"))
            if as_stored not in files and as_stored not in folders and files.isdisjoint(as_stored.parents):
                break
        files.add(as_stored)
        folders.update(as_stored.parents)
        names[category, image_path] = name
    return names


def _as_folder(category: str) -> str:
    """A category as a folder's name; what a disk would not take, of free text, is replaced or cut."""
    is_plain = ":" not in category and "\\" not in category and not category.startswith(("/", "~"))
    name = category if is_plain and ".." not in Path(category).parts else re.sub(r"[/\\:~]|\.\.", "_", category)
    content = name.encode("utf-8", "surrogateescape")
    return name if len(content) <= _LONGEST else content[:_LONGEST].decode("utf-8", "ignore")


def _as_stored(name: Path) -> Path:
    """What a disk takes for the same name that ignores case, or writes accents in another way."""
    return Path(unicodedata.normalize("NFC", str(name)).casefold())
