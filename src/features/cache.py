"""Serves a data set's frozen features from disk, after computing those that are not there yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from rich.progress import track
from torch import Tensor
from torch.utils.data import Subset

from datamodules.base import AnomalyDataModule
from datamodules.records import Record
from src.features.store import ArrayStore, NoRoom
from src.files import sha256_of
from src.models.method import Features, Method

FORMAT = 1  # to be raised whenever the same settings give other features or masks than before
DTYPES = {"float32": torch.float32, "float16": torch.float16}
MASK = "mask"


class Served(NamedTuple):
    """What provenance.json says about one use of the cache: `hits` of `images` were there, under `key`."""

    key: str
    images: int
    hits: int


class FeatureCache:
    """The frozen features of a method, and the masks at their evaluation size.

    A file's name is the hash of what it was computed from, and the key of its folder the hash of how: no file can be
    out of date.

    Args:
        store: where they are kept.
        identity: what decides the features beside the images' content and size: plain values.
        dtype: `float32` or `float16`.
        method: has to say what is `frozen`.
        trainer: tells device and precision.
    """

    def __init__(
        self, store: ArrayStore, identity: Mapping[str, Any], dtype: str, method: Method, trainer: Trainer
    ) -> None:
        assert method.frozen is not None
        self.store = store
        self.identity = {**identity, "settings": dict(method.frozen.settings), "dtype": dtype}
        self.dtype = DTYPES[dtype]
        self.method = method
        self.frozen = method.frozen
        self.trainer = trainer

    def serve(self, data: AnomalyDataModule, role: str) -> dict[str, Any]:
        """Let a data set hand out features instead of images, or leave it as it is if they can't be kept.

        Args:
            data: images are loaded by it.
            role: `train`, `val` or `test`.

        Returns:
            What provenance.json should say.
        """
        if role == "train" and data.transforms != "default":
            return _off(f"train_data.transforms={data.transforms} gives other images in each epoch")
        parts = self.frozen.for_loss if role == "train" else self.frozen.for_scores
        try:
            filling = _Filling(self, data, role, parts)
            filling.run()
        except (NoRoom, OSError) as reason:
            return _off(str(reason))
        data.stored[role] = filling.samples()
        served = Served(self.key_of(data), len(filling.entries), filling.hits)
        computed = served.images - served.hits
        print(f"features of {served.images} images of {data.title}: {served.hits} cached, {computed} computed")
        return served._asdict()

    def key_of(self, data: AnomalyDataModule) -> str:
        """The key of a data set's features."""
        image = {"image_size": data.image_size, "mean": list(data.mean), "std": list(data.std)}
        return _key({**self.identity, **image})

    def compute(self, images: Tensor) -> Features:
        """The features of a batch as training and test would compute them, on the CPU.

        Raises:
            NoRoom: a value is too large for the type they are kept in.
        """
        device = self.trainer.strategy.root_device
        with torch.inference_mode(), self.trainer.precision_plugin.forward_context():
            features = self.method.to(device).features(images.to(device))
            kept = {name: values.to(self.dtype).cpu() for name, values in features.items()}
        if self.dtype == torch.float16 and any(values.isinf().any() for values in kept.values()):
            raise NoRoom("the features exceed float16; set feature_cache.dtype=float32")
        return kept


class _Filling:
    """One data set in one role: what is there, and the computation of the rest.

    Attributes:
        paths: for each record, the file of each part.
        entries: for each record, the parts that are there.
        hits: how many records had all their features at the start.
    """

    def __init__(self, cache: FeatureCache, data: AnomalyDataModule, role: str, parts: Sequence[str]) -> None:
        self.cache = cache
        self.data = data
        self.role = role
        self.parts = parts
        records = data.records_of(role)
        keys = dict.fromkeys(parts, cache.key_of(data))
        mask_key = _key({"mask_size": data.mask_size(role)})
        with ThreadPoolExecutor() as pool:
            names = list(pool.map(_content_of, records))
        self.paths = [{part: cache.store.path(keys[part], part, image) for part in parts} for image, _ in names]
        if data.has_masks:
            for paths, (_, mask) in zip(self.paths, names, strict=True):
                paths[MASK] = cache.store.path(mask_key, MASK, mask)
        self.entries = [{part: cache.store.read(path) for part, path in paths.items()} for paths in self.paths]
        self.hits = sum(self._has_features(entry) for entry in self.entries)
        self.written: list[Path] = []

    def run(self) -> None:
        """Compute and write what is missing; if that fails, nothing of it stays."""
        missing = [index for index, entry in enumerate(self.entries) if None in entry.values()]
        dataset = self.data.dataset(self.role)
        loader = self.data.loader(self.role, Subset(dataset, missing))
        hidden = self.cache.trainer.progress_bar_callback is None or not missing
        try:
            with torch.random.fork_rng():  # a loader draws a seed for its workers
                position = 0
                for batch in track(loader, "features", transient=True, disable=hidden):
                    indices = missing[position : position + self.data.batch_size]
                    self._keep(indices, batch, rest=len(missing) - position)
                    position += len(indices)
        except BaseException:
            for path in self.written:
                path.unlink(missing_ok=True)
            raise

    def samples(self) -> list[dict[str, Any]]:
        """What the data set hands out for each record."""
        return [
            {"features": {part: entry[part] for part in self.parts}}
            | ({MASK: entry[MASK]} if MASK in entry else {})
            for entry in self.entries
        ]

    def _keep(self, indices: Sequence[int], batch: dict[str, Any], rest: int) -> None:
        """Write what a batch has and the store has not."""
        arrays = dict(batch) if all(self._has_features(self.entries[i]) for i in indices) else {
            **batch,
            **self.cache.compute(batch["image"]),
        }
        todo = [
            (index, part, arrays[part][row])
            for row, index in enumerate(indices)
            for part, there in self.entries[index].items()
            if there is None
        ]
        if not self.written:
            size = sum(array.nbytes for *_, array in todo)
            keep = {path for paths in self.paths for path in paths.values()}
            self.cache.store.make_room(size * rest // len(indices), keep)
        for index, part, array in todo:
            path = self.paths[index][part]
            self.written.append(path)
            self.entries[index][part] = self.cache.store.write(path, array)

    def _has_features(self, entry: Mapping[str, Tensor | None]) -> bool:
        return all(entry[part] is not None for part in self.parts)


def _content_of(record: Record) -> tuple[str, str]:
    """The names of an image's features and of its mask: hashes of the files' content."""
    image = sha256_of(record.image_path)
    mask = sha256_of(record.mask_path) if record.mask_path else "none"
    return image, hashlib.sha256(f"{image} {mask}".encode()).hexdigest()


def _key(identity: Mapping[str, Any]) -> str:
    content = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _off(reason: str) -> dict[str, Any]:
    print(f"feature cache off: {reason}", flush=True)
    return {"off": reason}
