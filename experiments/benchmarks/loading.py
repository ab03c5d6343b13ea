"""What an image costs before it reaches the model: `python -m experiments.benchmarks.loading --data ../shared/data`.

Decoding and resizing on one core, for real images of both data sets, in turn with the plain way by Pillow and
torchvision; and listing, fingerprint and memory for as many names as are asked for.
"""

from __future__ import annotations

import argparse
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as tv

from datamodules.base import AnomalyDataModule
from datamodules.folder import Folder
from datamodules.images import CLIP_MEAN, CLIP_STD
from datamodules.mvtec import MVTec
from datamodules.records import Record
from datamodules.visa import VisA
from experiments.benchmarks.timing import print_table, set_threads, write_results

FILES_A_FOLDER = 1000
SIZE = 240


def plain_sample(record: Record) -> tuple[Tensor, Tensor]:
    """Image (3, S, S) and mask (S, S) {0, 1} as the reference makes them."""
    image = Image.open(record.image_path).convert("RGB")
    mask = np.zeros((image.height, image.width), bool)
    if record.mask_path is not None:
        mask = np.asarray(Image.open(record.mask_path).convert("L")) > 0
    size = (SIZE, SIZE)
    squash = tv.Compose(
        [tv.Resize(size, tv.InterpolationMode.BICUBIC), tv.ToTensor(), tv.Normalize(CLIP_MEAN, CLIP_STD)]
    )
    grey = tv.Compose([tv.Resize(size), tv.ToTensor()])(Image.fromarray((mask * 255).astype(np.uint8)))
    return squash(image), (grey[0] > 0.5).to(torch.uint8)


def decoding_rows(data: AnomalyDataModule, rounds: int) -> list[dict[str, Any]]:
    """Image and mask as the test has them, by category; processor time, which other programs don't lengthen by much."""
    rows = []
    counts = data.fingerprint()["categories"]
    for category in data.category_names:
        records = [record for record in data.tested_records if record.category == category]
        dataset = data.dataset("test", records)
        plain, ours = 0.0, 0.0
        for number in range(rounds + 1):
            for index, record in enumerate(records):
                start = process_time()
                image, mask = plain_sample(record)
                between = process_time()
                sample = dataset[index]
                done = process_time()
                torch.testing.assert_close(sample["image"], image, rtol=0, atol=1e-6)
                assert torch.equal(sample["mask"], mask)
                if number:  # in the first round the files come into memory
                    plain, ours = plain + between - start, ours + done - between
        milliseconds = [1e3 * taken / rounds / len(records) for taken in (plain, ours)]
        rows.append(
            {
                "category": f"{data.title}, {category}",
                "images": len(records),
                "Pillow and torchvision (ms an image)": milliseconds[0],
                "this project (ms an image)": milliseconds[1],
                "times faster": milliseconds[0] / milliseconds[1],
                "MB an image": counts[category]["bytes"] / len(records) / 1e6,
            }
        )
    return rows


def listing_row(num_images: int) -> dict[str, Any]:
    """Names of a plain folder; the files are empty, since none is opened."""
    with TemporaryDirectory() as folder:
        for number in range(num_images):
            path = Path(folder, str(number // FILES_A_FOLDER), f"{number}.png")
            path.parent.mkdir(exist_ok=True)
            path.touch()
        start = perf_counter()
        records = Folder(folder).records
        listed = perf_counter()
        Folder(folder).fingerprint()
        done = perf_counter()
        tracemalloc.start()
        data = Folder(folder)
        kept = len(data.records)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert kept == len(records) == num_images
    return {
        "images": num_images,
        "listing (us an image)": 1e6 * (listed - start) / num_images,
        "listing and fingerprint (us an image)": 1e6 * (done - listed) / num_images,
        "memory (bytes an image)": size / num_images,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mvtec and visa")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--names", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    set_threads(1)
    sets = [MVTec(options.data / "mvtec", image_size=SIZE), VisA(options.data / "visa", image_size=SIZE)]
    tables = {
        f"decoding, one core, image and mask at {SIZE}": [
            row for data in sets for row in decoding_rows(data, options.rounds)
        ],
        "bookkeeping": [listing_row(number) for number in options.names],
    }
    for title, rows in tables.items():
        print_table(title, rows)
    write_results("loading", tables, rounds=options.rounds)


if __name__ == "__main__":
    main()
