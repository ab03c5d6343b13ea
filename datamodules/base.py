"""The LightningDataModule that all data sets share. A subclass only says where its records are."""

import multiprocessing
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from datamodules import options
from datamodules.dataset import AnomalyDataset, Batch, Sample, collate, collate_native
from datamodules.errors import UserError
from datamodules.fingerprint import fingerprint_records
from datamodules.images import CLIP_MEAN, CLIP_STD
from datamodules.records import Record, each_file_once
from datamodules.samplers import EpochSampler, FillerBatches, SharedBatchSampler, own_slice
from datamodules.transforms import Transform

MOST_WORKERS = 8  # more of them wait for each other, or for the disk


class AnomalyDataModule(LightningDataModule):
    """Records -> loaders for training, validation, test and prediction.

    The disk is read on the first access to ``records`` (or in ``setup``), and everything that can be wrong with the
    options or the files' names raises a UserError there. Files are opened when they are loaded.

    Args:
        root: the data set's folder.
        categories: which ones to use; None for all that are there. Published order, whatever the order here.
        split: ``test`` or ``train``, as the publisher split the data set.
        image_size: S; an image is squashed to (S, S). A run passes its backbone's.
        eval_size: the size of the test masks: ``model`` (S), ``native`` (as on disk) or a number.
        batch_size: images a training step, over all processes together, so that their number does not change the
            training; images a batch of each process where nothing is trained. The last batch may be smaller.
        num_workers: processes that decode images; 0 decodes in the main process. None for one a core beside the main
            process's, at most 8.
        transforms: of the training images: ``default``, ``augment`` or ``mosaic``. All others get ``default``.
        shuffle: the training images.
        val_categories: taken out of training, for validation.
        shard: ``i/n`` to test the i-th of n parts only, counted from 1; None for all. Parts are consecutive batches.
        bits: how many of the bits of 16-bit images are used, such as 12; None for all. Images of 8 bits don't ask.
        mean: of the pixels in [0, 1], per channel; an image is normalised by it. A run passes its backbone's.
        std: likewise.

    A data set is a subclass with four texts and two methods:

    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from datamodules.records import list_images
    >>> class Cups(AnomalyDataModule):
    ...     name, title, layout, source = "cups", "Cups", "good/*.png, bad/*.png", "Take photos"
    ...
    ...     def find_categories(self):
    ...         return ["cup"]
    ...
    ...     def read_category(self, category):
    ...         folders = enumerate(("good", "bad"))
    ...         return [Record(path, category, i, None) for i, f in folders for path in list_images(self.root / f)]
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("good", "bad"):
    ...         Path(folder, name).mkdir()
    ...         Image.new("RGB", (30, 20)).save(Path(folder, name, "0.png"))
    ...     batch = next(iter(Cups(folder, image_size=16, num_workers=0).test_dataloader()))
    >>> batch["image"].shape, batch["label"], batch["image_path"]
    (torch.Size([2, 3, 16, 16]), tensor([0, 1]), ['good/0.png', 'bad/0.png'])
    """

    name: str  # in file names
    title: str  # in text
    published: ClassVar[Sequence[str]] = ()  # the publisher's categories, in the publisher's order
    splits: ClassVar[Sequence[str]] = ("test", "train")
    layout: ClassVar[str]  # what is looked for below root, for error messages
    source: ClassVar[str]  # where the data can be had, for error messages
    skips_unreadable: ClassVar[bool] = False  # whether a file that can't be read ends the run, or is left out
    is_upright: bool = False  # whether images are turned as their EXIF tag says

    def __init__(
        self,
        root: str | Path,
        categories: Sequence[str] | None = None,
        split: str = "test",
        image_size: int = 240,
        eval_size: int | str = "model",
        batch_size: int = 8,
        num_workers: int | None = None,
        transforms: str = "default",
        shuffle: bool = False,
        val_categories: Sequence[str] = (),
        shard: str | None = None,
        bits: int | None = None,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.categories = categories
        self.split = split
        self.image_size = image_size
        self.eval_size = eval_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.transforms = transforms
        self.shuffle = shuffle
        self.val_categories = val_categories or ()
        self.shard = shard
        self.bits = bits
        self.mean = mean
        self.std = std
        self._was_told = multiprocessing.Value("b", False)
        self._served: dict[str, Mapping[Record, Sample]] = {}
        self.left_out: frozenset[tuple[str, str]] = frozenset()

    # What a data set has to say

    def find_categories(self) -> Sequence[str]:
        """The categories that are there below ``root``, in any order. ``root`` exists."""
        raise NotImplementedError

    def read_category(self, category: str) -> list[Record]:
        """The records of one category and ``split``, in a fixed order."""
        raise NotImplementedError

    # What follows from it

    @cached_property
    def available_categories(self) -> list[str]:
        """All categories on disk, published ones first and in published order."""
        there = self.root.is_dir()
        found = set(self.find_categories()) if there else set()
        if not found:
            what = "found nothing of it" if there else "there is no such folder"
            raise UserError(f"Expected {self.title} in {self.root} ({self.layout}), but {what}. {self.source}")
        for name in sorted(found):
            options.check_category(name, self.root)
        return [name for name in self.published if name in found] + sorted(found.difference(self.published))

    @cached_property
    def category_names(self) -> list[str]:
        """The categories that are used."""
        available = self.available_categories
        if self.categories is None:
            if self.missing_categories:
                rank_zero_warn(
                    f"{self.title} in {self.root} is there only in part: {len(available)} categories are used, "
                    f"{len(self.missing_categories)} are missing ({', '.join(self.missing_categories)})"
                )
            return available
        return options.choose("categories", self.categories, available)

    @property
    def missing_categories(self) -> list[str]:
        """Published categories that are not on disk, when all were asked for. An own data set misses none."""
        available = set(self.available_categories)
        if self.categories is not None or available.isdisjoint(self.published):
            return []
        return [name for name in self.published if name not in available]

    @property
    def is_published(self) -> bool:
        """Whether these are images of a published data set: all of its categories lie here, and no others are used.

        Images in a published layout, or of categories of the same names, may be somebody's own.
        """
        used, published, available = map(set, (self.category_names, self.published, self.available_categories))
        return bool(published) and used <= published <= available

    @cached_property
    def records(self) -> list[Record]:
        """One record an image, category after category.

        Raises:
            UserError: anything that is wrong with the options or the files, short of their content.
        """
        self.check_options()
        records: list[Record] = []
        for category in self.category_names:
            own = self.read_category(category)
            if not own:
                raise UserError(
                    f"Expected images of category {category} ({self.split} split) below {self.root}, but found none; "
                    "add them or leave the category out"
                )
            records += own
        if not self.skips_unreadable:  # some of those files may not even be there
            records = each_file_once(records)
        options.check_masks(records)
        options.check_shard(self.shard, len(records), self.batch_size)
        if self.val_categories:
            options.check_val_categories(self.val_categories, self.category_names)
        return records

    def check_options(self) -> None:
        """Check the options that need no file.

        Raises:
            UserError: one is out of range.
        """
        options.check_options(
            split=(self.split, self.splits),
            transforms=self.transforms,
            image_size=self.image_size,
            eval_size=self.eval_size,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            bits=self.bits,
        )

    @property
    def tested_records(self) -> list[Record]:
        """The records of the shard, or all."""
        part, parts = options.parse_shard(self.shard)
        return self.records[own_slice(len(self.records), self.batch_size, part - 1, parts)]

    @property
    def image_names(self) -> list[tuple[str, str]]:
        """Category and path (POSIX, relative to ``root``) of each record."""
        return [self.name_of(record) for record in self.records]

    def name_of(self, record: Record) -> tuple[str, str]:
        """Category and path (POSIX, relative to ``root``) of a record."""
        return record.category, record.image_path.relative_to(self.root).as_posix()

    @property
    def prompt_set(self) -> str:
        """The name under which a method looks up what it does for the prompts of a data set."""
        return self.name

    def leave_out(self, names: Collection[tuple[str, str]]) -> None:
        """Predict all images but these, see ``image_names``: a run that goes on has their scores already."""
        self.left_out = frozenset(names)

    @property
    def has_labels(self) -> bool:
        """Every image is known to be normal or anomalous."""
        return all(record.label is not None for record in self.records)

    @property
    def has_masks(self) -> bool:
        """There are masks: of all anomalous images, then, and the normal ones count as all zero."""
        return any(record.mask_path is not None for record in self.records)

    def fingerprint(self) -> dict[str, Any]:
        """What was read, for provenance: see :mod:`datamodules.fingerprint`."""
        identity = {"root": str(self.root), "name": self.name, "split": self.split}
        return identity | fingerprint_records(self.records, self.root)

    def setup(self, stage: str) -> None:
        """Read the disk, so that errors come before anything is computed."""
        _ = self.records

    def train_dataloader(self) -> DataLoader[Sample]:
        """All categories but ``val_categories``.

        Raises:
            UserError: a step has fewer images than there are processes.
        """
        rank, processes = self._process
        options.check_share(self.batch_size, processes)
        dataset = self.dataset("train", self.records_of("train"))
        # To overfit a batch is to see the same one again; Lightning can't tell our sampler.
        shuffle = self.shuffle and not getattr(self.trainer, "overfit_batches", 0)
        order = EpochSampler(dataset, shuffle, dataset.seed, dataset.epoch)
        return self.loader("train", dataset, SharedBatchSampler(order, self.batch_size, rank, processes))

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """``val_categories``, or an empty list, which Lightning takes as: no validation."""
        return self._ordered_loader("val") if self.val_categories else []

    def test_dataloader(self) -> DataLoader[Sample]:
        """All categories, masks at ``eval_size``."""
        return self._ordered_loader("test")

    def predict_dataloader(self) -> DataLoader[Sample]:
        """The same as for test, without the images that are left out."""
        return self._ordered_loader("test", self.left_out)

    def records_of(self, role: str) -> list[Record]:
        """For ``train`` all records but those of ``val_categories``, for ``val`` these, for ``test`` the shard's."""
        if role == "test":
            return self.tested_records
        return [record for record in self.records if (record.category in self.val_categories) == (role == "val")]

    def mask_size(self, role: str) -> int | None:
        """N of the masks; None where they keep their size."""
        if role != "test" or self.eval_size == "model":
            return self.image_size
        return None if self.eval_size == "native" else int(self.eval_size)

    def batch_rows(self, role: str, processes: int) -> int:
        """The images of a whole batch of one of several processes: its share of a training step, or ``batch_size``."""
        share = -(-self.batch_size // processes) if role == "train" else self.batch_size
        return min(share, len(self.records))

    def serve(self, role: str, samples: Mapping[Record, Sample]) -> None:
        """Take over the samples of a role, so that its loaders decode no image.

        Whoever has the features of the images already hands them over here, before a loader is asked for.

        Args:
            role: ``train``, ``val`` or ``test``.
            samples: for each of the role's records ``features`` {name: tensor}, and ``mask`` (N, N) if the data set has
                masks. The rest of a sample comes from the record.
        """
        self._served[role] = samples

    def dataset(self, role: str, records: Sequence[Record]) -> AnomalyDataset:
        """The samples of records as ``train``, ``val`` or ``test`` needs them."""
        transforms = self.transforms if role == "train" else "default"
        return AnomalyDataset(
            records,
            self.root,
            Transform(transforms, self.image_size, self.mask_size(role), self.mean, self.std),
            self.has_labels,
            self.has_masks,
            torch.initial_seed(),
            self._served.get(role),
            self.bits,
            self._was_told,
        )

    def loader(
        self,
        role: str,
        dataset: AnomalyDataset,
        batch_sampler: Iterable[list[int]] | None = None,
        collate_fn: Callable[[Sequence[Sample]], Batch] | None = None,
    ) -> DataLoader[Sample]:
        """Batches of a role's samples, in the order of the records or in the sampler's."""
        # What is served is mapped into this process: from another one it would have to be copied over.
        workers = 0 if role in self._served else self._workers
        batches = {"batch_sampler": batch_sampler} if batch_sampler else {"batch_size": self.loaded_together}
        return DataLoader(
            dataset,
            collate_fn=collate_fn or (collate if self.mask_size(role) else collate_native),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            **batches,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """In a test, leave on the CPU what only metrics and callbacks read, such as masks and tiles."""
        if self.trainer is None or self.trainer.training:
            moved: Batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
            return moved
        read = {name: batch[name] for name in ("image", "features") if name in batch}
        return {**batch, **super().transfer_batch_to_device(read, device, dataloader_idx)}

    def _ordered_loader(self, role: str, left_out: Collection[tuple[str, str]] = ()) -> DataLoader[Sample]:
        """Batches in file order, this process's part of them; a filler if it has none, since all have to take part."""
        records = [one for one in self.records_of(role) if not left_out or self.name_of(one) not in left_out]
        own = records[own_slice(len(records), self.batch_size, *self._process)]
        if own or not records:
            return self.loader(role, self.dataset(role, own))
        return self.loader(role, self.dataset(role, records[:1]), FillerBatches())

    @property
    def loaded_together(self) -> int:
        """The images of a batch where nothing is trained."""
        return self.batch_size

    @property
    def _process(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def _workers(self) -> int:
        """``num_workers``, or what the cores allow, which the processes of a run on this machine share."""
        if self.num_workers is not None:
            return self.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(max(cores // (self.trainer.num_devices if self.trainer else 1) - 1, 0), MOST_WORKERS)
