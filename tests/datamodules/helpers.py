"""Hand-made files."""

from pathlib import Path

import numpy as np
from PIL import Image

VISA_HEADER = "object,split,label,image,mask"
SIZE = (20, 30)  # (h, w) of the hand-made images: neither square nor of the model's size


def save_image(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def save_mask(path: Path, columns: int, value: int = 255, size: tuple[int, int] = SIZE) -> None:
    """The first columns are anomalous."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[:, :columns] = value
    Image.fromarray(mask).save(path)
