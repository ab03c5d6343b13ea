"""Serves a data set's frozen features from disk, after computing those that are not there yet.

Features are the same to the last digit whether they are computed in a run or were kept by another one. B images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from rich.progress import track
from torch import Tensor

from datamodules.base import AnomalyDataModule
from datamodules.records import Record
from src.features.store import ArrayStore, NotKept
from src.files import sha256_of
from src.identity import NoSource, identify_code
from src.models.method import Features, Method
from src.processes import say

FORMAT = 2  # to be raised whenever the same settings give other features or masks than before
MASK = "mask"

Entry = dict[str, Tensor | None]  # what is there of an image, by part


class FeatureCache:
    """The frozen features of a method, and the masks at the size at which they are used.

    A file's name is the hash of what it was computed from, and its folder's name is the hash of everything
    else that decides its content. So no file can be out of date.

    Args:
        store: where they are kept.
        identity: what decides the features beside the method's settings and the images: plain values.
        options: by role, what a data set is told about reading its images beside what every data set is told.
        dtype: `float32` or `float16`.
        method: has to say what is `frozen`.
        trainer: tells device and precision.
    """

    def __init__(
        self,
        store: ArrayStore,
        identity: Mapping[str, Any],
        options: Mapping[str, Mapping[str, Any]],
        dtype: str,
        method: Method,
        trainer: Trainer,
    ) -> None:
        assert method.frozen is not None
        self.store = store
        self.identity = {**identity, "settings": dict(method.frozen.settings), "dtype": dtype}
        self.options = options
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.method = method
        self.frozen = method.frozen
        self.trainer = trainer

    def serve(self, data: AnomalyDataModule, role: str) -> dict[str, Any]:
        """Let a data set hand out features instead of images, or leave it as it is if they can't be kept.

        Args:
            data: loads the images and masks that are missing.
            role: what it is used for: `train`, `val` or `test`.

        Returns:
            What provenance.json says about it: `key`, `images`, and `hits` of them that were there; or why it is `off`.
        """
        records = data.records_of(role)
        try:
            key, mask_key = self._keys(data, role)
            paths = self._paths(data, role, records, key, mask_key)
            entries = self._read(paths)
            hits = sum(_has_features(entry) for entry in entries.values())
            self._fill(data, role, paths, entries)
        except (NotKept, NoSource, OSError) as reason:
            return off(str(reason))
        data.serve(role, {record: _sample(entry) for record, entry in entries.items()})
        say(f"features of {len(records)} images of {data.title}: {hits} cached, {len(records) - hits} computed")
        return {"key": key, "images": len(records), "hits": hits}

    def _keys(self, data: AnomalyDataModule, role: str) -> tuple[str, str]:
        """The keys of a data set's features and of its masks: how its files become arrays, and these features."""
        source = {"code": identify_code([type(data)]), "options": self.options[role]}
        images = {"size": data.image_size, "mean": list(data.mean), "std": list(data.std), "bits": data.bits}
        rows = data.batch_rows(role, self.trainer.world_size)
        return _hash({**self.identity, "data": source, "images": images, "rows": rows}), _hash(
            {"data": source, "mask_size": data.mask_size(role)}
        )

    def _paths(
        self, data: AnomalyDataModule, role: str, records: Sequence[Record], key: str, mask_key: str
    ) -> dict[Record, dict[str, Path]]:
        """The file of each part of each record."""
        parts = self.frozen.for_loss if role == "train" else self.frozen.for_scores
        with ThreadPoolExecutor() as pool:
            names = list(pool.map(_names, records))
        paths, has_masks = {}, data.has_masks
        for record, (image, mask) in zip(records, names, strict=True):
            paths[record] = {part: self.store.path(key, part, image) for part in parts}
            if has_masks:
                paths[record][MASK] = self.store.path(mask_key, MASK, mask)
        return paths

    def _read(self, paths: Mapping[Record, Mapping[str, Path]]) -> dict[Record, Entry]:
        """What is there; reading is checking, all of each file."""

        def read(files: Mapping[str, Path]) -> Entry:
            return {part: self.store.read(path) for part, path in files.items()}

        with ThreadPoolExecutor() as pool:
            return dict(zip(paths, pool.map(read, paths.values()), strict=True))

    def _fill(
        self,
        data: AnomalyDataModule,
        role: str,
        paths: Mapping[Record, Mapping[str, Path]],
        entries: Mapping[Record, Entry],
    ) -> None:
        """Compute what is missing and write it; if there is no room for all of it, nothing of it stays."""
        missing = [record for record, entry in entries.items() if None in entry.values()]
        if not missing:
            return
        loader = data.loader(role, data.dataset(role, missing))
        rows = data.batch_rows(role, self.trainer.world_size)
        keep = {path for record in entries for path in paths[record].values()}
        hidden = self.trainer.progress_bar_callback is None
        written: list[Path] = []
        rest = iter(missing)
        try:
            with torch.random.fork_rng(devices=[]):  # a loader draws a seed for its workers
                for batch in track(loader, "features", transient=True, disable=hidden):
                    records = list(islice(rest, len(batch["category"])))
                    arrays = list(self._arrays(batch, rows, records, entries))
                    if not written:
                        size = sum(array.nbytes for *_, array in arrays) / len(records)
                        self.store.make_room(int(size * len(missing)), keep)
                    for record, part, array in arrays:
                        written.append(paths[record][part])
                        entries[record][part] = self.store.write(paths[record][part], array)
        except (NotKept, OSError):
            for path in written:
                path.unlink(missing_ok=True)
            raise

    def _arrays(
        self, batch: Mapping[str, Any], rows: int, records: Sequence[Record], entries: Mapping[Record, Entry]
    ) -> Iterator[tuple[Record, str, Tensor]]:
        """What a batch has and the store has not."""
        arrays: dict[str, Any] = dict(batch)
        if not all(_has_features(entries[record]) for record in records):
            arrays |= self._compute(batch["image"], rows)
        for row, record in enumerate(records):
            for part, there in entries[record].items():
                if there is None:
                    yield record, part, arrays[part][row]

    def _compute(self, images: Tensor, rows: int) -> Features:
        """The features of a batch, as training and test would compute them; on the CPU.

        Raises:
            NotKept: a value is not finite, or too large for the type they are kept in, or training changes them after
                all.
        """
        device = self.trainer.strategy.root_device
        self.method.to(device)
        with self.trainer.precision_plugin.forward_context():
            features = compute_features(self.method, images.to(device), rows, self.dtype)
        if any(values.requires_grad for values in features.values()):  # no graph is built where all is frozen
            raise NotKept(f"model {self.method.name} calls features frozen that its training changes")
        if any(values.dtype != self.dtype for values in features.values()):
            raise NotKept("the features are too large for float16; set feature_cache.dtype=float32")
        if not all(values.isfinite().all() for values in features.values()):
            raise NotKept("the features are not finite")
        return {name: values.cpu() for name, values in features.items()}


def compute_features(method: Method, images: Tensor, rows: int, dtype: torch.dtype) -> Features:
    """Features of a batch's images, in a batch of `rows` images, in the type that they are kept in.

    The last digits of an image's features depend on how many images its batch has, but not on which ones. So a smaller
    batch is filled up with copies of an image, and the copies' features are dropped.

    Args:
        method: a method with frozen features.
        images: (B, 3, H, W), normalised.
        rows: number of images of a whole batch.
        dtype: `float32` or `float16`; where a value is too large for it, the batch's features stay as they are.

    Example:
        >>> from src.clip.backbone import Backbone, find_backbone
        >>> from src.models.prompts import Prompts
        >>> from src.models.sdp import SDP
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = SDP(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> features = compute_features(method, torch.zeros(1, 3, 96, 96), rows=4, dtype=torch.float16)
        >>> features["surgery"].shape, features["surgery"].dtype  # 4 levels, CLS and 144 patches, 96 channels
        (torch.Size([1, 4, 145, 96]), torch.float16)
    """
    count = len(images)
    fill = images[-1:].expand(max(rows - count, 0), -1, -1, -1)
    features = {name: values[:count] for name, values in method.features(torch.cat([images, fill])).items()}
    kept = {name: values.to(dtype) for name, values in features.items()}
    return features if any(values.isinf().any() for values in kept.values()) else kept


def off(reason: str) -> dict[str, Any]:
    """Say that features are computed anew, and return that for provenance.json.

    Example:
        >>> off("the backbone's weights are random")
        feature cache off: the backbone's weights are random
        {'off': "the backbone's weights are random"}
    """
    say(f"feature cache off: {reason}")
    return {"off": reason}


def _has_features(entry: Entry) -> bool:
    return all(array is not None for part, array in entry.items() if part != MASK)


def _sample(entry: Entry) -> dict[str, Any]:
    """What the data set hands out."""
    features = {part: array for part, array in entry.items() if part != MASK}
    return {"features": features} | ({MASK: entry[MASK]} if MASK in entry else {})


def _names(record: Record) -> tuple[str, str]:
    """The names of an image's features and of its mask: by what is in the files, and is checked when they are read."""
    image = sha256_of(record.image_path)
    mask = sha256_of(record.mask_path) if record.mask_path else None
    return image, _hash({"image": image, "mask": mask, "label": record.label})


def _hash(identity: Mapping[str, Any]) -> str:
    content = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]
