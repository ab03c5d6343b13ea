"""A plain folder of one's own images, with or without labels and masks."""

from pathlib import Path
from typing import Any

from datamodules.base import AnomalyDataModule
from datamodules.errors import UserError
from datamodules.options import as_text
from datamodules.paths import below
from datamodules.records import ANOMALOUS, NORMAL, Record, list_images, pair_masks, stem_below


class Folder(AnomalyDataModule):
    """One category. With ``root`` alone, all images below it, unlabelled.

    Args:
        root: the folder.
        category: the object's name in prompts and tables; None for the folder's name.
        normal_dir: normal images, below ``root``. With this or the next one, images elsewhere are not used.
        anomalous_dir: anomalous images, below ``root``.
        mask_dir: masks of the anomalous images, below ``root``: ``sub/a.png`` or ``sub/a_mask.png`` for ``sub/a.jpg``.
        **options: see :class:`datamodules.base.AnomalyDataModule`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "a.jpg").touch()
    ...     data = Folder(folder, category="cup")
    ...     print(data.image_names, data.has_labels)
    [('cup', 'a.jpg')] False
    """

    splits = ("test",)
    layout = "any images"
    source = "Set root, and normal_dir, anomalous_dir and mask_dir if used, to folders that are there"

    def __init__(
        self,
        root: str | Path,
        category: str | None = None,
        normal_dir: str | None = None,
        anomalous_dir: str | None = None,
        mask_dir: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.name = self.title = self.root.resolve().name
        self.category = self.name if category is None else as_text("category", category)
        self.normal_dir = normal_dir
        self.anomalous_dir = anomalous_dir
        self.mask_dir = mask_dir

    def find_categories(self) -> list[str]:
        """The one category."""
        return [self.category]

    def read_category(self, category: str) -> list[Record]:
        """Normal images, then anomalous ones, each sorted by path; or all images without labels."""
        if self.mask_dir and not self.anomalous_dir:
            raise UserError(f"Expected anomalous_dir beside mask_dir={self.mask_dir}: the folder its masks belong to")
        if not self.normal_dir and not self.anomalous_dir:
            return [Record(path, category, None, None) for path in list_images(self.root)]
        normal = self._images("normal_dir", self.normal_dir)
        anomalous = self._images("anomalous_dir", self.anomalous_dir)
        both = normal.keys() & anomalous.keys()
        if both:
            raise UserError(f"Expected normal_dir and anomalous_dir to share no image, but both hold {min(both)}")
        masks: dict[str, Path] = {}
        if self.mask_dir:
            # Some data sets give normal images, too, a mask: not an orphan, but not read either.
            masks = pair_masks(self._folder("mask_dir", self.mask_dir), [*anomalous.values(), *normal.values()])
        records = [Record(path, category, NORMAL, None) for path in normal]
        return records + [Record(path, category, ANOMALOUS, masks.get(stem)) for path, stem in anomalous.items()]

    def _images(self, option: str, subfolder: str | None) -> dict[Path, str]:
        """Image -> stem."""
        if subfolder is None:
            return {}
        folder = self._folder(option, subfolder)
        return {path: stem_below(path, folder) for path in list_images(folder)}

    def _folder(self, option: str, name: str) -> Path:
        folder = below(self.root, as_text(option, name), option)
        if not folder.is_dir():
            raise UserError(f"Expected folder {name} below {self.root}, but there is none. {self.source}")
        return folder
