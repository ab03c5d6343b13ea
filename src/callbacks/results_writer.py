"""`metrics.json`, or of a part of an evaluation what the metrics of the whole need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from src.anomaly_module import AnomalyModule
from src.files import write_json
from src.processes import is_first, say, warned
from src.run.metric_state import write_state
from src.run.results import CURVES_FILE, METRICS_FILE, STATE_FILE, write_curves


class ResultsWriter(Callback):
    """Writes the results of a test, and then hands them to every callback that asks for them.

    A callback asks by a method `on_results(trainer, module, results)`. It is called once, on the first process, after
    metrics.json is written; `results` is what that file holds. After a prediction it is `on_predictions(trainer,
    module)`, when predictions.csv is written. If the method returns a dictionary, it joins provenance.json.

    Args:
        folder: the run's folder.
        note: adds entries to provenance.json.

    Example:
        >>> class Mean(Callback):
        ...     def on_results(self, trainer, module, results):
        ...         print(results["mean"])
        >>> callbacks = [Mean(), ResultsWriter(Path("outputs/mine"), note=print)]
        >>> trainer = Trainer(callbacks=callbacks, logger=False)
    """

    def __init__(self, folder: Path, note: Callable[..., None]) -> None:
        self.folder = folder
        self.note = note

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write, and tell: after the test, when the progress bar is gone from the terminal."""
        assert isinstance(pl_module, AnomalyModule)
        if stage == "predict" and is_first() and not pl_module.is_part:
            self._tell("on_predictions", trainer, pl_module)
        if stage != "test":
            return
        if pl_module.is_part:
            write_state(pl_module.test_metrics, self.folder / STATE_FILE)
            say("a part of the test has no metrics: join all parts by `python -m experiments.merge FOLDER...`")
        elif is_first():
            write_json(self.folder / METRICS_FILE, pl_module.results)
            with warned(CURVES_FILE):
                write_curves(self.folder, pl_module.test_metrics.curves)
            self._tell("on_results", trainer, pl_module, pl_module.results)

    def _tell(self, hook: str, trainer: Trainer, *arguments: Any) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            entries = getattr(callback, hook)(trainer, *arguments) if hasattr(callback, hook) else None
            if isinstance(entries, dict):
                self.note(**entries)
