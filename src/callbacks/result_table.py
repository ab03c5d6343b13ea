"""The table of a test on the terminal."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from src.metrics.benchmark_metrics import BenchmarkResult
from src.report.table import print_table


class ResultTable(Callback):
    """Prints the metrics of each category, and their mean.

    Example:
        >>> trainer = Trainer(callbacks=[ResultTable()], logger=False)
    """

    def on_results(self, trainer: Trainer, module: LightningModule, results: BenchmarkResult) -> None:
        """Print them, under the line that says what was trained and tested."""
        print_table(results, str(module.line))
