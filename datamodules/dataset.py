"""Records -> samples -> batches."""

import multiprocessing
from collections.abc import Mapping, Sequence
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset

from datamodules.errors import UserError
from datamodules.images import UInt8Array, load_image, load_mask
from datamodules.records import ANOMALOUS, NORMAL, Record
from datamodules.samplers import Filler
from datamodules.transforms import seed_transform

Sample = dict[str, Any]
Batch = dict[str, Any]


class AnomalyDataset(Dataset[Sample]):
    """Decodes one record at a time.

    A sample is ``image`` (3, S, S) float32, ``mask`` (N, N) or (h, w) uint8 {0, 1}, ``label`` int, ``category`` and
    ``image_path`` (POSIX, relative to ``root``). ``mask`` and ``label`` are there only if asked for, and with both
    ``mask_is_empty``: whether an anomalous image's mask marks nothing even in its file. ``is_filler`` is there, and
    True, only for a :class:`datamodules.samplers.Filler`, which is always alone in its batch.

    Random augmentation depends on the seed, the epoch and the image alone: neither the number of workers, nor how
    images are dealt out to workers and devices, nor a resumed run changes it.

    Args:
        records: what to load.
        root: that ``image_path`` is relative to.
        transform: see :func:`datamodules.transforms.build_transform`.
        with_labels: every record has a label.
        with_masks: records without a mask get an all-zero one.
        seed: of the augmentation.
        bits: of 16-bit files, see :func:`datamodules.images.load_image`.
        was_told: set once the user was told that such a file is dark; shared by the processes that load.
        stored: for each record, what a sample has instead of ``image`` and ``mask``, so that no image is opened:
            ``features`` {name: tensor}, and ``mask`` if asked for.
    """

    def __init__(
        self,
        records: Sequence[Record],
        root: Path,
        transform: A.Compose,
        with_labels: bool,
        with_masks: bool,
        seed: int = 0,
        stored: Mapping[Record, Sample] | None = None,
        bits: int | None = None,
        was_told: "Synchronized[int] | None" = None,
    ) -> None:
        self.records = records
        self.root = root
        self.transform = transform
        self.with_labels = with_labels
        self.with_masks = with_masks
        self.seed = seed
        self.stored = stored
        self.bits = bits
        self.was_told = was_told or multiprocessing.Value("b", False)
        # In shared memory, because workers that live on between epochs keep their own copy of everything else.
        self.epoch = torch.tensor(0).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        sample = self._decode(record, index) if self.stored is None else dict(self.stored[record])
        if self.with_labels:
            sample["label"] = record.label
        sample["category"] = record.category
        sample["image_path"] = record.image_path.relative_to(self.root).as_posix()
        if self.with_labels and self.with_masks:
            sample["mask_is_empty"] = record.label == ANOMALOUS and not sample["mask"].any() and _is_empty(record)
        if isinstance(index, Filler):
            sample["is_filler"] = True
        return sample

    def _decode(self, record: Record, index: int) -> Sample:
        arrays = {"image": load_image(record.image_path, self.bits, self._warn_once)}
        if self.with_masks:
            arrays["mask"] = _mask_of(record, arrays["image"])
        seed_transform(self.transform, (self.seed, int(self.epoch), index))
        sample: Sample = self.transform(**arrays)
        return sample

    def _warn_once(self, line: str) -> None:
        """Once, and not once a worker."""
        with self.was_told.get_lock():
            if not self.was_told.value:
                self.was_told.value = True
                rank_zero_warn(line)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples -> ``image`` (B, 3, S, S) or ``features`` {name: (B, ...)}, ``mask`` (B, N, N), ``label`` (B,) int64.

    The rest are lists of str.
    """
    batch = collate_native(samples)
    if "mask" in batch:
        batch["mask"] = torch.stack(batch["mask"])  # (B, N, N)
    return batch


def collate_native(samples: Sequence[Sample]) -> Batch:
    """Like :func:`collate`, but ``mask`` stays a list of B (h, w) tensors, since their sizes differ."""
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


def _mask_of(record: Record, image: UInt8Array) -> UInt8Array:
    size = image.shape[:2]
    if record.mask_path is None:
        return np.zeros(size, dtype=np.uint8)  # (h, w)
    mask = load_mask(record.mask_path)  # (h, w)
    if mask.shape != size:
        raise UserError(
            f"Expected a mask of its image's size, but {record.mask_path} has {_pixels(mask)} and "
            f"{record.image_path} has {_pixels(image)} pixels"
        )
    if record.label == NORMAL and mask.any():
        raise UserError(
            f"Expected an empty mask for the normal image {record.image_path}, but {record.mask_path} marks "
            f"{int(mask.sum())} pixels; correct the mask or the label"
        )
    return mask


def _pixels(array: UInt8Array) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
