"""Heat maps over their images, as files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from datamodules.errors import UserError
from datamodules.images import load_image
from src.callbacks.case_recorder import cases_of
from src.callbacks.map_writer import map_names
from src.files import SPARE, replacing
from src.metrics.benchmark_metrics import BenchmarkResult
from src.processes import warned
from src.report.cases import Case, Cases
from src.report.pictures import FloatArray, blended

OVERLAYS = "overlays"


class OverlayWriter(Callback):
    """Writes each image with its heat map over it, `overlays/<category>/<image's folder>/<image>.png`, at its own size.

    The colours are those of the page: the images of a category share one scale, from the lowest value of any of their
    maps to the highest. So they are written when all images have passed.

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
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if self.reads_cases:
            with warned(OVERLAYS), cases_of(trainer) as cases:
                write_overlays(Path(trainer.default_root_dir), cases)


def write_overlays(folder: Path, cases: Cases) -> None:
    """Write the overlay of every case whose image is still there.

    Args:
        folder: the run's folder.
        cases: what was recorded while the images passed.

    Raises:
        UserError: the cases are damaged.
        OSError: the disk is full.
    """
    tables = {name: cases.table(name) for name in cases.categories}
    ranges = {name: (float(table.low.min()), float(table.high.max())) for name, table in tables.items()}
    names = map_names(cases.names())

    gone: list[UserError] = []

    def write(case: Case, image_file: Path, bits: int | None, anomaly_map: FloatArray) -> UserError | None:
        try:
            image = load_image(image_file, bits, _say_nothing)
        except UserError as error:
            return error
        name = names[case.category, case.image_path].with_suffix(".png")
        overlay = blended(image, anomaly_map, *ranges[case.category])
        with replacing(folder / OVERLAYS / name, sync=False, spare=SPARE) as temporary:
            Image.fromarray(overlay).save(temporary, "png", compress_level=1)
        return None

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(cases), 4 * threads):  # a few at a time: memory is bounded
            numbers = range(start, min(start + 4 * threads, len(cases)))
            some, maps = [cases.case(number) for number in numbers], [cases.anomaly_map(number) for number in numbers]
            files, bits = [cases.image_file(number) for number in numbers], [cases.bits(number) for number in numbers]
            gone += [error for error in pool.map(write, some, files, bits, maps) if error is not None]
    if gone:
        rank_zero_warn(f"no overlays of {len(gone)} of {len(cases)} images, such as: {gone[0]}")


def _say_nothing(line: str) -> None:
    """The user was told of a dark image when it was tested."""
