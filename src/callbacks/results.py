"""`metrics.json`, or of a part of an evaluation what the metrics of the whole need."""

from __future__ import annotations

from pathlib import Path

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
    metrics.json is written; `results` is what that file holds.

    Args:
        folder: the run's folder.

    Example:
        >>> class Mean(Callback):
        ...     def on_results(self, trainer, module, results):
        ...         print(results["mean"])
        >>> trainer = Trainer(callbacks=[Mean(), ResultsWriter(Path("outputs/mine"))], logger=False)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write, and tell: after the test, when the progress bar is gone from the terminal."""
        assert isinstance(pl_module, AnomalyModule)
        if stage != "test":
            return
        if pl_module.is_part:
            write_state(pl_module.test_metrics, self.folder / STATE_FILE)
            say("a part of the test has no metrics: join all parts by `python -m experiments.merge FOLDER...`")
        elif is_first():
            write_json(self.folder / METRICS_FILE, pl_module.results)
            with warned(CURVES_FILE):
                write_curves(self.folder, pl_module.test_metrics.curves)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if hasattr(callback, "on_results"):
                    callback.on_results(trainer, pl_module, pl_module.results)
