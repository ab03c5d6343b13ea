"""The per-category table."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from src.metric_names import DECISION_NAMES, METRIC_NAMES
from src.metrics import BenchmarkResult
from src.metrics.pixel_metrics import PIXEL_ERRORS

MEAN = "mean"
_IN_PERCENT = (*METRIC_NAMES, *DECISION_NAMES)


def print_table(result: BenchmarkResult, title: str) -> None:
    """Print the metrics in percent, the user's own as they are, with notes where a figure needs one.

    Example:
        >>> cup = {"image_AUROC": 0.9, "pixel_AP": 0.5}
        >>> print_table({"mean": cup, "categories": {"cup": cup}}, "no training -> test my cups")
        no training -> test my cups
        ┏━━━━━━━━━━┳━━━━━━━┳━━━━━━━┓
        ┃          ┃ image ┃ pixel ┃
        ┃ category ┃ AUROC ┃    AP ┃
        ┡━━━━━━━━━━╇━━━━━━━╇━━━━━━━┩
        │ cup      │  90.0 │  50.0 │
        ├──────────┼───────┼───────┤
        │ mean     │  90.0 │  50.0 │
        └──────────┴───────┴───────┘
        in percent
    """
    (first, *names), *rows = rows_of(result)
    table = Table()
    table.add_column(str(first), no_wrap=True)
    for name in names:
        title_of_column = str(name).replace("_", "\n", 1) if name in _IN_PERCENT else str(name)
        table.add_column(title_of_column, justify="right", no_wrap=True)
    for category, *values in rows:
        if category == MEAN:
            table.add_section()
        table.add_row(str(category), *(_cell(str(name), value) for name, value in zip(names, values, strict=True)))
    print(title)
    # A file has no width; rich would cut the columns at 80 characters.
    Console(markup=False, width=None if sys.stdout.isatty() else 1000).print(table)
    print("; ".join(["in percent", *notes_of(result)]), flush=True)


def rows_of(result: BenchmarkResult) -> list[list[str | float | None]]:
    """A header, a row a category and a row of means: values as in the result, None where there is none.

    The user's own metrics follow the others.

    Example:
        >>> cup = {"image_AUROC": 0.9, "pixel_AP": 0.5}
        >>> rows_of({"mean": cup, "categories": {"cup": cup}})
        [['category', 'image_AUROC', 'pixel_AP'], ['cup', 0.9, 0.5], ['mean', 0.9, 0.5]]
    """
    shown = [name for name in _IN_PERCENT if name in result["mean"]] + _own_names(result)
    rows: list[list[str | float | None]] = [["category", *shown]]
    for category, metrics in [*result["categories"].items(), (MEAN, result["mean"])]:
        rows.append([category, *(metrics.get(name) for name in shown)])
    return rows


def _cell(name: str, value: str | float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * float(value):.1f}" if name in _IN_PERCENT else f"{float(value):.4g}"


def _own_names(result: BenchmarkResult) -> list[str]:
    return [name for name in result["mean"] if name not in _IN_PERCENT]


def notes_of(result: BenchmarkResult) -> list[str]:
    """What to know of the figures of a result.

    Example:
        >>> notes_of({"mean": {}, "categories": {"cup": {"vanished_masks": 2}}})
        ['2 masks vanish at the evaluation size (see test_data.eval_size)']
    """
    notes = []
    if own := _own_names(result):
        notes.append(f"{', '.join(own)} as computed")
    if not set(DECISION_NAMES).isdisjoint(result["mean"]):
        notes.append("escapes and false alarms are those at the given threshold")
    vanished, empty = (
        sum(int(metrics.get(key, 0)) for metrics in result["categories"].values())
        for key in ("vanished_masks", "empty_masks")
    )
    if vanished:
        notes.append(f"{vanished} masks vanish at the evaluation size (see test_data.eval_size)")
    if empty:
        notes.append(f"{empty} masks of anomalous images are empty on disk")
    bounded = [name for name, metrics in result["categories"].items() if PIXEL_ERRORS.keys() & metrics.keys()]
    if bounded:
        notes.append(f"pixel metrics of {', '.join(bounded)} come from a histogram: pixel_*_error bounds their errors")
    partial = [name for name in result["mean"] if any(name not in metrics for metrics in result["categories"].values())]
    if partial:
        notes.append(f"not every category can give {', '.join(partial)}: those means are over the ones that can")
    return notes
