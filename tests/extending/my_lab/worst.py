"""A callback: write down the image of each category whose map is worst, with its heat map."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from src.callbacks.case_recorder import cases_of
from src.processes import warned
from src.report.description import describe


class WorstMaps(Callback):
    """Writes `worst/<category>.jpg` and `worst/<category>.png`. Maps are ranked by pixel AP within the image."""

    reads_cases = True

    def on_results(self, trainer: Trainer, module: LightningModule, results: dict[str, Any]) -> None:
        """Read what the run has written, and the pictures of its images."""
        folder = Path(trainer.default_root_dir)
        (folder / "worst").mkdir(exist_ok=True)
        with warned("worst maps"), cases_of(trainer) as cases:  # what fails here costs a line, and not the run
            description = describe(folder, cases)
            for case in description.cases:
                pictures = description.pictures_of(case) if case["ranks"].get("worst map") == 1 else None
                if pictures is not None:
                    (folder / "worst" / f"{case['category']}.jpg").write_bytes(pictures.image)
                    (folder / "worst" / f"{case['category']}.png").write_bytes(pictures.heat_map)
