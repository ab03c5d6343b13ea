"""What the page of a run costs: time beside the same evaluation without it, memory, and its size.

`python -m experiments.benchmarks.report --data ../shared/data`
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from experiments.benchmarks.drawn_maps import draw_category
from experiments.benchmarks.runs import ROOT
from experiments.benchmarks.timing import print_table, write_results
from src.callbacks.report import REPORT_FILE, write_report
from src.files import write_json
from src.report.cases import Case, Cases, CaseWriter, Picture
from src.report.pictures import jpeg, outline, pack_map
from src.run.predictions import Prediction, write_predictions
from tests.records import PROVENANCE

DEMO, MVTEC = "demo, 128 px", "MVTec AD, 900 and 1024 px"
BATCH, SIDE, DRAWN = 16, 256, 64
CATEGORIES = [f"drawn {number}" for number in range(15)]
THRESHOLD = {"single_F1Max_threshold": 0.8}
NO_PAGE = "callbacks.report=null"


def main() -> None:
    """Time pairs of evaluations, take the memory of drawn images, print tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mvtec")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--draw", type=int, help=argparse.SUPPRESS)  # in the process whose memory is taken
    options = parser.parse_args()
    if options.draw:
        print(json.dumps(drawn_page(options.draw)))
        return
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
    with TemporaryDirectory() as folder:
        mvtec = ["data@test_data=mvtec", f"test_data.root={options.data.resolve()}/mvtec"]
        cached = ["feature_cache.enabled=true", f"paths.cache_dir={folder}/cache"]
        cost = [
            beside_without(options.rounds, DEMO, []),
            beside_without(options.rounds, MVTEC, mvtec),
            beside_without(options.rounds, f"{MVTEC}, features from the cache", [*mvtec, *cached]),
        ]
    print_table("An evaluation with a page, beside the same without", cost)
    memory = [
        json.loads(run_python("-m", "experiments.benchmarks.report", "--draw", str(images)))
        for images in options.images
    ]
    print_table("Drawn images", memory)
    write_results("report", {"cost": cost, "memory": memory}, rounds=options.rounds, threads=options.threads)


def beside_without(rounds: int, data: str, overrides: list[str]) -> dict[str, Any]:
    """The shortest of several evaluations with a page and without, in turn: others may use the machine."""
    seconds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    images = 0
    for number in range(rounds + 1):  # the first one fills caches
        for has_page, pair in seconds.items():
            wall, processor, images = evaluate([*overrides, *([] if has_page else [NO_PAGE])])
            if number:
                pair.append((wall, processor))
    row: dict[str, Any] = {"data": data, "images": images}
    for place, clock in enumerate(("wall", "processor")):
        less, more = (min(pair[place] for pair in seconds[has_page]) for has_page in (False, True))
        row |= {f"without ({clock}, s)": less, f"with ({clock}, s)": more, f"more ({clock}, s)": more - less}
    return row


def evaluate(overrides: list[str]) -> tuple[float, float, int]:
    """Seconds of an evaluation by the demo's CLIP in a process of its own, by both clocks, and its images."""
    with TemporaryDirectory() as folder:
        quiet = ["trainer.accelerator=cpu", "~callbacks.progress", "+trainer.enable_progress_bar=false"]
        command = ["-m", "src.eval", "+exp=sdp_demo", *quiet, "test_data.num_workers=0"]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        run_python(*command, *overrides, f"paths.output_dir={folder}/run")
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        lines = Path(folder, "run", "predictions.csv").read_text().splitlines()
        return wall, processor, len(lines) - 1


def run_python(*arguments: str) -> str:
    """Run Python in a process of its own, and return what it prints."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def drawn_page(images: int) -> dict[str, Any]:
    """Record drawn images as a test does, write their page, and tell how long it took and what memory it needed."""
    maps, masks, _ = draw_category(DRAWN, SIDE)
    rng = np.random.default_rng(0)
    photos = (200 - 100 * maps[..., None] / maps.max() + rng.normal(0, 6, (DRAWN, SIDE, SIDE, 3))).clip(0, 255)
    pixels = photos.astype(np.uint8)
    forget_peak()
    before = resident("VmRSS")
    rows: list[Prediction] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        writer = CaseWriter(folder / "cases", folder)
        for first in range(0, images, BATCH):
            batch = []
            for number in range(first, min(first + BATCH, images)):
                i = number % DRAWN
                low, high, packed = pack_map(maps[i])
                label, share = int(masks[i].any()), float(masks[i].mean())
                category = CATEGORIES[number * len(CATEGORIES) // images]
                case = Case(category, f"{category}/{number}.png", label, high, share or None, share, low, high)
                batch.append((case, Picture(jpeg(pixels[i], SIDE), packed, outline(masks[i]))))
                rows.append(Prediction(case.image_path, case.category, label, {"map_max": high}, high))
            writer.add(batch)
        writer.close()
        recorded, of_cases = time.perf_counter() - start, (folder / "cases").stat().st_size
        write_predictions(folder / "predictions.csv", rows, ["map_max"], "single")
        write_json(folder / "metrics.json", {"mean": {}, "categories": dict.fromkeys(CATEGORIES, THRESHOLD)})
        write_json(folder / "provenance.json", PROVENANCE)
        start = time.perf_counter()
        with Cases([folder / "cases"]) as cases:
            write_report(folder, cases)
        return {
            "images": images,
            "recorded (ms an image)": 1000 * recorded / images,
            "page written (s)": time.perf_counter() - start,
            "memory (MB more)": round(resident("VmHWM") - before),
            "cases while it runs (MB)": round(of_cases / 1e6),
            "page (MB)": round((folder / REPORT_FILE).stat().st_size / 1e6, 1),
        }


def resident(field: str) -> float:
    """Memory of this process in MB (Linux): VmRSS is that of now, VmHWM the most since the last `forget_peak`."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024 / 1e6


def forget_peak() -> None:
    """Have VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
