"""Several runs in one table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from src.metric_names import METRIC_NAMES
from src.metrics.benchmark_metrics import BenchmarkResult


def side_by_side(results: Mapping[str, BenchmarkResult]) -> Table:
    """For each category, and for the mean, a row a run; a column a metric, in percent."""
    table = Table()
    table.add_column("category", no_wrap=True)
    table.add_column("model", no_wrap=True)
    for name in METRIC_NAMES:
        level, metric = name.split("_", 1)
        table.add_column(f"{level}\n{metric}", justify="right", no_wrap=True)
    for category in next(iter(results.values()))["categories"]:
        _add_rows(table, category, {run: result["categories"][category] for run, result in results.items()})
    _add_rows(table, "mean", {run: result["mean"] for run, result in results.items()})
    return table


def _add_rows(table: Table, category: str, runs: Mapping[str, Mapping[str, float]]) -> None:
    table.add_section()
    for position, (run, metrics) in enumerate(runs.items()):
        cells = (f"{100 * metrics[name]:.1f}" if name in metrics else "-" for name in METRIC_NAMES)
        table.add_row("" if position else category, run, *cells)
