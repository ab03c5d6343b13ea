"""A data set: `<category>/ok/*.png`, `<category>/nok/*.png`, and for each of the latter `<category>/mask/*.png`."""

from datamodules.base import AnomalyDataModule
from datamodules.records import ANOMALOUS, NORMAL, Record, list_images


class Pairs(AnomalyDataModule):
    """Every folder that has a folder `nok` is a category."""

    name = "pairs"
    title = "Pairs"
    splits = ("test",)
    layout = "<category>/ok/000.png, <category>/nok/000.png, <category>/mask/000.png"
    source = "It lies on the disk of our lab"

    def find_categories(self) -> list[str]:
        """The names of the categories that are on the disk."""
        return [folder.parent.name for folder in self.root.glob("*/nok")]

    def read_category(self, category: str) -> list[Record]:
        """First the normal images, then the anomalous ones with their masks."""
        folder = self.root / category
        normal = [Record(image, category, NORMAL, None) for image in list_images(folder / "ok")]
        anomalous = list_images(folder / "nok")
        return normal + [Record(image, category, ANOMALOUS, folder / "mask" / image.name) for image in anomalous]
