"""Heat maps over their images, as files."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from datamodules.errors import UserError
from datamodules.images import load_image
from datamodules.paths import below
from datamodules.photos import open_photo
from src.callbacks.case_recorder import cases_of
from src.callbacks.map_writer import OVERLAYS, map_names
from src.files import SPARE, replacing
from src.metrics.benchmark_metrics import BenchmarkResult
from src.processes import warned
from src.regions import Outline
from src.report.cases import Case, Cases
from src.report.pictures import FloatArray, UInt8Array, blended, outlined
from src.run.journal import Name
from src.run.predictions import iterate_predictions
from src.run.region_files import read_outlines
from src.run.results import PREDICTIONS_FILE


class OverlayWriter(Callback):
    """Writes each image with its heat map over it, `overlays/<category>/<image's folder>/<image>.png`, at its own size.

    The colours are those of the page: the images of a category share one scale, from the lowest value of any of their
    maps to the highest. So they are written when all images have passed. A prediction's have the outlines of what its
    threshold of the maps marks.

    Args:
        enabled: whether to write anything.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[OverlayWriter()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, enabled: bool = True) -> None:
        self.reads_cases = enabled

    def on_results(self, trainer: Trainer, module: LightningModule, results: BenchmarkResult) -> None:
        """Write those of a test."""
        self._write(trainer)

    def on_predictions(self, trainer: Trainer, module: LightningModule) -> None:
        """Write those of a prediction."""
        self._write(trainer, has_regions=True)

    def _write(self, trainer: Trainer, has_regions: bool = False) -> None:
        folder = Path(trainer.default_root_dir)
        if self.reads_cases:
            with warned(OVERLAYS), cases_of(trainer) as cases:
                write_overlays(folder, cases, read_outlines(folder) if has_regions else None)


def write_overlays(folder: Path, cases: Cases, outlines: Mapping[Name, Outline] | None = None) -> None:
    """Write the overlay of every case whose image is still there.

    Args:
        folder: the run's folder.
        cases: what was recorded while the images passed.
        outlines: category and path of an image -> polygons to draw on it, see `src.regions`.

    Raises:
        UserError: the cases are damaged.
        OSError: the disk is full.
    """
    tables = {name: cases.table(name) for name in cases.categories}
    ranges = {name: (float(table.low.min()), float(table.high.max())) for name, table in tables.items()}
    targets = {name: Path(OVERLAYS, file.with_suffix(".png")) for name, file in map_names(cases.names()).items()}
    table = folder / PREDICTIONS_FILE
    for row in iterate_predictions(table) if table.is_file() else ():  # it has named the files as the images passed
        if row.extras and "overlay" in row.extras:
            targets[row.category, row.image_path] = below(folder, row.extras["overlay"], "an overlay").relative_to(
                folder
            )

    gone: list[UserError] = []

    def write(
        case: Case, image_file: Path, bits: int | None, is_upright: bool, anomaly_map: FloatArray
    ) -> UserError | None:
        try:
            image = _picture_of(image_file, bits, is_upright)
        except UserError as error:
            return error
        overlay = blended(image, anomaly_map, *ranges[case.category])
        overlay = outlined(overlay, (outlines or {}).get((case.category, case.image_path), []))
        with replacing(folder / targets[case.category, case.image_path], sync=False, spare=SPARE) as temporary:
            Image.fromarray(overlay).save(temporary, "png", compress_level=1)
        return None

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(cases), 4 * threads):  # a few at a time: memory is bounded
            numbers = range(start, min(start + 4 * threads, len(cases)))
            some, maps = [cases.case(number) for number in numbers], [cases.anomaly_map(number) for number in numbers]
            files, bits = [cases.image_file(number) for number in numbers], [cases.bits(number) for number in numbers]
            upright = [cases.is_upright(number) for number in numbers]
            gone += [error for error in pool.map(write, some, files, bits, upright, maps) if error is not None]
    if gone:
        rank_zero_warn(f"no overlays of {len(gone)} of {len(cases)} images, such as: {gone[0]}")


def _picture_of(path: Path, bits: int | None, is_upright: bool) -> UInt8Array:
    """The image (H, W, 3) as the model has seen it, at its own size."""
    if is_upright:
        return np.asarray(open_photo(path, bits, _say_nothing).convert("RGB"))
    return load_image(path, bits, _say_nothing)


def _say_nothing(line: str) -> None:
    """The user was told of a dark image when it was tested."""
