"""A callback that keeps the description which a page would be made of."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from lightning import Callback, LightningModule, Trainer

from src.callbacks.case_recorder import cases_of
from src.metrics.benchmark_metrics import BenchmarkResult
from src.report.description import Description, Pictures, describe


class Probe(Callback):
    """Reads the cases as the page does."""

    reads_cases = True
    seen: ClassVar[list[tuple[Description, dict[int, Pictures]]]] = []

    def __init__(self, max_images: int = 2000) -> None:
        self.max_images = max_images

    def on_results(self, trainer: Trainer, module: LightningModule, results: BenchmarkResult) -> None:
        with cases_of(trainer) as cases:
            description = describe(Path(trainer.default_root_dir), cases, self.max_images)
            shown = {number: p for name in description.cards for number, p in description.pictures(name)}
            self.seen.append((description, shown))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict":
            self.on_results(trainer, pl_module, {"mean": {}, "categories": {}})
