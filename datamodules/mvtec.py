"""MVTec AD (Bergmann et al., CVPR 2019), and own data in its layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from datamodules.records import ANOMALOUS, NORMAL, Record, list_images, pair_masks, stem_below

GOOD = "good"


class MVTec(AnomalyDataModule):
    """A category is any folder with ``test/``; ``train/`` is needed for the train split only.

    Without any ``ground_truth/`` the data set has labels only.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("test/good/0.png", "test/dent/0.png", "ground_truth/dent/0_mask.png"):
    ...         Path(folder, "gear", name).parent.mkdir(parents=True)
    ...         Path(folder, "gear", name).touch()
    ...     records = MVTec(folder).records
    >>> [(record.category, record.label, record.mask_path is not None) for record in records]
    [('gear', 1, True), ('gear', 0, False)]
    """

    name = "mvtec"
    title = "MVTec AD"
    published: ClassVar[Sequence[str]] = (
        *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw"),
        *("tile", "toothbrush", "transistor", "wood", "zipper"),
    )
    layout = (
        "<category>/test/<defect>/000.png, <category>/ground_truth/<defect>/000_mask.png, <category>/train/good/000.png"
    )
    source = "The archive is behind a form on https://www.mvtec.com/company/research/datasets/mvtec-ad"

    def find_categories(self) -> list[str]:
        """Folders that hold a folder ``test``."""
        return [folder.parent.name for folder in self.root.glob("*/test") if folder.is_dir()]

    def read_category(self, category: str) -> list[Record]:
        """Records sorted by path; the defect's folder gives the label."""
        folder = self.root / category
        if self.split == "train":
            return [Record(path, category, NORMAL, None) for path in list_images(folder / "train" / GOOD)]
        images = {path: stem_below(path, folder / "test") for path in list_images(folder / "test")}
        masks = pair_masks(folder / "ground_truth", images.values())
        return [Record(path, category, _label(path, stem), masks.get(stem)) for path, stem in images.items()]


def _label(path: Path, stem: str) -> int:
    defect, slash, _ = stem.partition("/")
    if not slash:
        raise UserError(f"Expected images in test/{GOOD} and test/<defect>, but found {path}; move it into one of them")
    return NORMAL if defect == GOOD else ANOMALOUS
