"""The images to train on, drawn once: for each category, pairs of one object without and with a defect.

N pairs, S side of the model's input in pixels.
"""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.demo.render import render
from datamodules.demo.settings import DEFECTS, SIZE, TRAINING_SEED

CHUNK = 100


class Pool(NamedTuple):
    """flawless, damaged: (N, S, S, 3) uint8. touched: (N, S, S) bool, where the two differ. category: (N,) int64.

    `touched` says of a close-up, and of each part of it, whether it shows the defect.
    """

    flawless: NDArray[np.uint8]
    damaged: NDArray[np.uint8]
    touched: NDArray[np.bool_]
    category: NDArray[np.int64]


def _resize(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Squash as the framework's preprocessing does: PIL, bicubic, antialiased."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def _draw_chunk(job: tuple[int, int, int, int]) -> Pool:
    """Draw pairs `start` to `start + count` of one category."""
    category, start, count, side = job
    cv2.setNumThreads(1)
    name = list(DEFECTS)[category]
    kinds = DEFECTS[name]
    photos = [render(TRAINING_SEED, "train", name, kinds[i % len(kinds)], i, SIZE) for i in range(start, start + count)]
    return Pool(
        np.stack([_resize(photo.flawless, side) for photo in photos]),
        np.stack([_resize(photo.image, side) for photo in photos]),
        np.stack([_resize(photo.mask * np.uint8(255), side) > 100 for photo in photos]),
        np.full(count, category),
    )


def draw_pool(pairs: int, side: int, workers: int) -> Pool:
    """Draw `pairs` pairs of each category (a multiple of 100), in `workers` processes."""
    jobs = [(c, start, CHUNK, side) for start in range(0, pairs, CHUNK) for c in range(len(DEFECTS))]
    with ProcessPoolExecutor(workers) as executor:
        chunks = list(executor.map(_draw_chunk, jobs))
    return Pool(*(np.concatenate(part) for part in zip(*chunks, strict=True)))


def load_pool(path: Path, pairs: int, side: int, workers: int = 2) -> Pool:
    """Read the pool from a folder of .npy files, or draw it and leave it there."""
    folder = path / f"pool_seed{TRAINING_SEED}_{pairs}x{len(DEFECTS)}_{side}px"
    files = [folder / f"{field}.npy" for field in Pool._fields]
    if not folder.exists():
        pool = draw_pool(pairs, side, workers)
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        for file, part in zip(files, pool, strict=True):
            np.save(unfinished / file.name, part)
        unfinished.rename(folder)
    return Pool(*(np.load(file) for file in files))
