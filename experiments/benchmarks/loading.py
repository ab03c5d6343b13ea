"""What an image costs before it reaches the model: `python -m experiments.benchmarks.loading --data ../shared/data`.

Decoding and resizing, one core, for real images of both data sets; and listing, fingerprint and memory for as many
names as are asked for, all of one small file.
"""

from __future__ import annotations

import argparse
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from PIL import Image

from datamodules.base import AnomalyDataModule
from datamodules.folder import Folder
from datamodules.mvtec import MVTec
from datamodules.visa import VisA
from experiments.benchmarks.timing import print_table, set_threads, write_results

FILES_A_FOLDER = 1000


def decoding_row(data: AnomalyDataModule, rounds: int) -> dict[str, Any]:
    """Image and mask, as the test has them."""
    dataset = data.dataset("test", data.tested_records)
    samples = range(len(data.tested_records))
    for index in samples:  # so that the files are in memory
        dataset[index]
    start = perf_counter()
    for _ in range(rounds):
        for index in samples:
            dataset[index]
    taken = (perf_counter() - start) / rounds / len(samples)
    size = sum(counts["bytes"] for counts in data.fingerprint()["categories"].values()) / len(samples)
    return {"data set": data.title, "images": len(samples), "ms an image": 1e3 * taken, "MB an image": size / 1e6}


def listing_row(num_images: int) -> dict[str, Any]:
    """Names of a plain folder; a directory entry each, and one file behind them."""
    with TemporaryDirectory() as folder:
        first = Path(folder, "0", "0.png")
        first.parent.mkdir()
        Image.new("RGB", (32, 32)).save(first)
        for number in range(1, num_images):
            path = Path(folder, str(number // FILES_A_FOLDER), f"{number}.png")
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(first)
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
    sets = [MVTec(options.data / "mvtec", image_size=240), VisA(options.data / "visa", image_size=240)]
    tables = {
        "decoding, one core, images of 240": [decoding_row(data, options.rounds) for data in sets],
        "bookkeeping": [listing_row(number) for number in options.names],
    }
    for title, rows in tables.items():
        print_table(title, rows)
    write_results("loading", tables, rounds=options.rounds)


if __name__ == "__main__":
    main()
