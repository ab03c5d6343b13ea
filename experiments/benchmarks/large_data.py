"""Data of any size for the benchmarks: the demo's images, enlarged, in MVTec's layout; from disk or from memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.demo.generate import demo_data
from datamodules.mvtec import MVTec
from datamodules.records import Record


def enlarged_demo(folder: Path, images: int, side: int) -> Path:
    """Write as many test images with their masks, if they are not there, and return their folder.

    Args:
        folder: below which they are written.
        images: how many; those of the demo again and again, over its twelve categories.
        side: of an image, in pixels.
    """
    root = folder / f"demo_{images}_{side}px"
    if not root.is_dir():
        demo = MVTec(demo_data(folder / "demo"))
        temporary = root.with_suffix(".tmp")
        with ThreadPoolExecutor() as pool:
            list(pool.map(partial(_enlarge, demo, temporary, side), cycle(_in_turn(demo.records)), range(images)))
        temporary.rename(root)
    return root


def _in_turn(records: Sequence[Record]) -> list[Record]:
    """An image of each category in turn."""
    seen: Counter[str] = Counter()
    places = []
    for record in records:
        places.append(seen[record.category])
        seen[record.category] += 1
    return [records[number] for number in sorted(range(len(records)), key=places.__getitem__)]


def _enlarge(demo: MVTec, root: Path, side: int, record: Record, number: int) -> None:
    _, name = demo.name_of(record)
    image = root / Path(name).with_name(f"{number:06}.png")
    _save(record.image_path, image, side, Image.Resampling.BICUBIC)
    if record.mask_path is not None:
        mask = root / record.category / "ground_truth" / image.parent.name / f"{number:06}_mask.png"
        _save(record.mask_path, mask, side, Image.Resampling.NEAREST)


def _save(source: Path, target: Path, side: int, resample: Image.Resampling) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(source).resize((side, side), resample).save(target, compress_level=1)


class KeptMVTec(MVTec):
    """Reads every sample before the test begins, so that no decoding and no disk takes part in it."""

    def setup(self, stage: str) -> None:
        """Read them: a run calls this before it builds its model."""
        super().setup(stage)
        if not hasattr(self, "samples"):
            dataset = super().dataset("test", self.tested_records)
            with ThreadPoolExecutor() as pool:
                samples = pool.map(dataset.__getitem__, range(len(dataset)))
                self.samples = dict(zip(self.tested_records, samples, strict=True))

    def dataset(self, role: str, records: Sequence[Record]) -> Any:
        """The samples themselves."""
        del role
        return [self.samples[record] for record in records]
