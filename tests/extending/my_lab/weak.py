"""A callback: write down the categories whose pixel AUROC is too low."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class WeakCategories(Callback):
    """Writes `weak.txt`, one category a line.

    Args:
        below: the pixel AUROC, in [0, 1], below which a category is weak.
    """

    def __init__(self, below: float) -> None:
        self.below = below

    def on_results(self, trainer: Trainer, module: LightningModule, results: dict[str, Any]) -> None:
        """Read the results, which are what metrics.json holds."""
        weak = [name for name, values in results["categories"].items() if values.get("pixel_AUROC", 1) < self.below]
        Path(trainer.default_root_dir, "weak.txt").write_text("".join(f"{name}\n" for name in weak))
