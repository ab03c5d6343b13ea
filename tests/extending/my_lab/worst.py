"""A callback: write down the image of each category whose map is worst, with its heat map."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from src.callbacks.case_recorder import cases_of
from src.report.description import describe


class WorstMaps(Callback):
    """Writes `worst/<category>.jpg` and `worst/<category>.png`. Maps are ranked by pixel AP within the image."""

    reads_cases = True

    def on_results(self, trainer: Trainer, module: LightningModule, results: dict[str, Any]) -> None:
        """Read what the run has written, and the pictures of its images."""
        folder = Path(trainer.default_root_dir)
        (folder / "worst").mkdir()
        with cases_of(trainer) as cases:
            description = describe(folder, cases)
            worst = {case["id"] for case in description.cases if case["ranks"].get("worst map") == 1}
            for category in description.cards:
                for number, pictures in description.pictures(category):
                    if number in worst:
                        (folder / "worst" / f"{category}.jpg").write_bytes(pictures.image)
                        (folder / "worst" / f"{category}.png").write_bytes(pictures.heat_map)
