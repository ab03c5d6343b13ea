"""Losses and metrics over time: `csv/version_0/metrics.csv`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from src.files import write_text
from src.processes import is_first


class ResumableCSVLogger(CSVLogger):
    """Lightning's, but a run that is resumed goes on in the table of its first part.

    Lightning deletes the table of an earlier part, or begins a second one. Rows of steps that the resumed run does once
    more are dropped. The table is written whole, so that a full disk leaves the one before.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for step, loss in ((1, 0.5), (2, 0.4)):  # a run, and its continuation
        ...         logger = ResumableCSVLogger(folder, name="csv", version=0)
        ...         logger.log_metrics({"loss": loss}, step)
        ...         logger.save()
        ...     print(Path(folder, "csv", "version_0", "metrics.csv").read_text().split())
        ['loss,step', '0.5,1', '0.4,2']
    """

    @property
    def experiment(self) -> Any:
        """What holds the rows; in other processes than the first, Lightning's dummy."""
        if self._experiment is None and is_first():
            self._experiment = _Table(self.log_dir)
        return super().experiment


class _Table(ExperimentWriter):
    """All rows of the table.

    Args:
        log_dir: the folder of the table.
    """

    def __init__(self, log_dir: str) -> None:
        self.earlier: list[dict[str, str]] = []
        self.metrics: list[dict[str, float]]
        super().__init__(log_dir)

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Add a row."""
        if step is not None and not self.metrics:
            self.earlier = [row for row in self.earlier if int(row["step"]) < step]
        super().log_metrics(metrics_dict, step)

    def save(self) -> None:
        """Write the table."""
        rows: list[dict[str, Any]] = [*self.earlier, *self.metrics]
        columns = sorted({name for row in rows for name in row})
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(Path(self.metrics_file_path), text.getvalue())

    def _check_log_dir_exists(self) -> None:
        """What Lightning calls before the first row, to delete what is there."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.earlier = [row for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]
