"""Records -> samples -> batches."""

import multiprocessing
from collections.abc import Mapping, Sequence
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch.utils.data import Dataset

from datamodules.errors import UserError
from datamodules.images import UInt8Array, load_mask, open_image
from datamodules.mosaic import Mosaics, mosaic_of_images, mosaic_of_masks
from datamodules.records import ANOMALOUS, NORMAL, Record
from datamodules.samplers import Filler
from datamodules.transforms import Transform

Sample = dict[str, Any]
Batch = dict[str, Any]


class AnomalyDataset(Dataset[Sample]):
    """The samples of records; a record's files are opened when its sample is asked for.

    A sample has ``image`` (3, S, S) float32, ``mask`` (N, N) or (h, w) uint8 {0, 1}, ``label`` int, ``category`` and
    ``image_path`` (POSIX, relative to ``root``). It has ``mask`` and ``label`` only if asked for, and with both
    ``mask_is_empty``: whether an anomalous image's mask marks nothing even in its file. Only the sample of a
    :class:`datamodules.samplers.Filler`, which is always alone in its batch, has ``is_filler``: True.

    A mosaic has the ``category`` and the ``image_path`` of the image that it replaces. Everything else describes the
    four images that it shows: ``label`` is 1 if one of them is anomalous.

    Random augmentation depends on the seed, the epoch and the image alone. The number of workers, the way in which
    images are dealt out to workers and devices, and a resumed run do not change it.

    Args:
        records: what to load.
        root: that ``image_path`` is relative to.
        transform: from decoded files to tensors.
        with_labels: every record has a label.
        with_masks: records without a mask get an all-zero one.
        seed: of the augmentation and the mosaics.
        served: for each record, what its sample has instead of ``image`` and ``mask``, so that no file is opened:
            ``features`` {name: tensor}, and ``mask`` if asked for. None if files are to be opened.
        bits: of 16-bit files, see :func:`datamodules.images.open_image`.
        was_told: set once the user was told that such a file is dark; the processes that load share it.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (30, 20)).save(Path(folder, "a.png"))
    ...     records = [Record(Path(folder, "a.png"), "cup", NORMAL, None)]
    ...     transform = Transform("default", 8, 8, (0, 0, 0), (1, 1, 1))
    ...     sample = AnomalyDataset(records, Path(folder), transform, with_labels=True, with_masks=True)[0]
    >>> sample["image"].shape, sample["mask"].shape, sample["label"], sample["category"], sample["image_path"]
    (torch.Size([3, 8, 8]), torch.Size([8, 8]), 0, 'cup', 'a.png')
    """

    def __init__(
        self,
        records: Sequence[Record],
        root: Path,
        transform: Transform,
        with_labels: bool,
        with_masks: bool,
        seed: int = 0,
        served: Mapping[Record, Sample] | None = None,
        bits: int | None = None,
        was_told: "Synchronized[int] | None" = None,
    ) -> None:
        self.records = records
        self.root = root
        self.transform = transform
        self.with_labels = with_labels
        self.with_masks = with_masks
        self.seed = seed
        self.served = served
        self.bits = bits
        self.was_told = was_told or multiprocessing.Value("b", False)
        # What is served was made of the records themselves.
        self.mosaics = Mosaics(records) if transform.name == "mosaic" and served is None else None
        # In shared memory, because workers that live on between epochs keep their own copy of everything else.
        self.epoch = torch.tensor(0).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        seed = (self.seed, int(self.epoch), index)
        four = self.mosaics.draw(record.category, seed) if self.mosaics else None
        shown = four or [record]
        sample = self._decode(shown, seed) if self.served is None else dict(self.served[record])
        if self.with_labels:
            sample["label"] = int(any(one.label == ANOMALOUS for one in shown))
        sample["category"] = record.category
        sample["image_path"] = record.image_path.relative_to(self.root).as_posix()
        if self.with_labels and self.with_masks:
            unmarked = sample["label"] == ANOMALOUS and not sample["mask"].any()
            sample["mask_is_empty"] = unmarked and all(map(_is_empty, shown))
        if isinstance(index, Filler):
            sample["is_filler"] = True
        return sample

    def _decode(self, shown: Sequence[Record], seed: Sequence[int]) -> Sample:
        """The image and mask of one record, or the mosaic of four."""
        images = [open_image(one.image_path, self.bits, self._warn_once) for one in shown]
        masks = None
        if self.with_masks:
            masks = [self._mask(one, image, len(shown) > 1) for one, image in zip(shown, images, strict=True)]
        if len(shown) == 1:
            return self.transform(images[0], masks[0] if masks else None, seed)
        return self.transform(mosaic_of_images(images), mosaic_of_masks(masks) if masks else None, seed)

    def _mask(self, record: Record, image: Image.Image, whole: bool) -> UInt8Array:
        """A record's mask as in its file; an all-zero one, which no file holds, at the size that is asked for.

        Args:
            record: whose.
            image: the record's.
            whole: whether an all-zero one has to be as large as the image.

        Raises:
            UserError: the mask does not fit its image or its label.
        """
        path = record.mask_path
        if path is None:
            size = None if whole else self.transform.mask_size
            return np.zeros((size, size) if size else (image.height, image.width), np.uint8)
        mask = load_mask(path)
        height, width = mask.shape
        if (width, height) != image.size:
            raise UserError(
                f"Expected a mask of its image's size, but {path} has {width}x{height} and {record.image_path} has "
                f"{image.width}x{image.height} pixels"
            )
        if record.label == NORMAL and mask.any():
            raise UserError(
                f"Expected an empty mask for the normal image {record.image_path}, but {path} marks {int(mask.sum())} "
                "pixels; correct the mask or the label"
            )
        return mask

    def _warn_once(self, line: str) -> None:
        """Once, and not once a worker."""
        with self.was_told.get_lock():
            if not self.was_told.value:
                self.was_told.value = True
                rank_zero_warn(line)


def collate(samples: Sequence[Sample]) -> Batch:
    """B samples -> ``image`` (B, 3, S, S) or ``features`` {name: (B, ...)}, ``mask`` (B, N, N), ``label`` (B,) int64.

    Everything else is a list of B values.

    >>> sample = {"image": torch.zeros(3, 8, 8), "mask": torch.zeros(8, 8), "label": 1, "category": "cup"}
    >>> batch = collate([sample, sample])
    >>> batch["image"].shape, batch["mask"].shape, batch["label"], batch["category"]
    (torch.Size([2, 3, 8, 8]), torch.Size([2, 8, 8]), tensor([1, 1]), ['cup', 'cup'])
    """
    batch = collate_native(samples)
    if "mask" in batch:
        batch["mask"] = torch.stack(batch["mask"])  # (B, N, N)
    return batch


def collate_native(samples: Sequence[Sample]) -> Batch:
    """Do the same as :func:`collate`, but leave ``mask`` a list of B tensors (h, w), since their sizes differ.

    >>> batch = collate_native([{"mask": torch.zeros(8, 5)}, {"mask": torch.zeros(3, 9)}])
    >>> [tuple(mask.shape) for mask in batch["mask"]]
    [(8, 5), (3, 9)]
    """
    batch: Batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    if "image" in batch:
        batch["image"] = torch.stack(batch["image"])  # (B, 3, S, S)
    if "features" in batch:
        names = batch["features"][0]
        batch["features"] = {name: torch.stack([one[name] for one in batch["features"]]) for name in names}
    if "label" in batch:
        batch["label"] = torch.tensor(batch["label"], dtype=torch.int64)  # (B,)
    return batch


def _is_empty(record: Record) -> bool:
    """Whether the file of a mask marks nothing: then no resizing has made it so."""
    return record.mask_path is None or not load_mask(record.mask_path).any()
