"""Measure the false alarms of calibrated thresholds, and of a threshold that another category's F1-max gives.

`python -m experiments.calibration --out outputs/calibration`; a second time, the scores are read from there.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_curve

from datamodules.demo.generate import Recipe, demo_data
from datamodules.records import IMAGE_SUFFIXES
from src import AnomalyDetector
from src.calibration import conformal_threshold
from src.files import write_csv

SEED = 505  # of the drawn images; none of the demo's
GOOD, PER_DEFECT = 400, 10
SPLITS = 200
FloatArray = npt.NDArray[np.float64]


class Scored(NamedTuple):
    """An image's scores: `highest` is the highest value of its map."""

    data: str
    category: str
    is_defective: bool
    score: float
    highest: float


def drawn(out: Path) -> Iterator[tuple[str, Path, bool]]:
    """Category, file and label of the drawn images."""
    root = demo_data(out / "drawn", Recipe(seed=SEED, train_good=1, test_good=GOOD, test_per_defect=PER_DEFECT))
    for file in sorted(root.glob("*/test/*/*.png")):
        yield file.parts[-4], file, file.parts[-2] != "good"


def real(root: Path) -> Iterator[tuple[str, Path, bool]]:
    """The same of the flawless images of excerpts of MVTec AD and VisA."""
    patterns = ("mvtec/*/*/good/*", "visa/*/Data/Images/Normal/*")
    for file in sorted(file for pattern in patterns for file in root.glob(pattern)):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            yield file.relative_to(root).parts[1], file, False


def scores_of(detector: AnomalyDetector, name: str, images: Iterator[tuple[str, Path, bool]]) -> Iterator[Scored]:
    """Score images, category by category."""
    for category, file, is_defective in images:
        [found] = detector.predict(file, category)
        yield Scored(name, category, is_defective, found.single_score, float(found.anomaly_map.max()))


def all_scores(out: Path, excerpts: Path) -> list[Scored]:
    """The scores, from the file of an earlier run or from the images."""
    path = out / "scores.csv"
    if not path.is_file():
        detector = AnomalyDetector.from_experiment("sdp_demo", overrides=["test_data.batch_size=1"])
        rows = [*scores_of(detector, "drawn", drawn(out)), *scores_of(detector, "real", real(excerpts))]
        write_csv(path, [Scored._fields, *rows])
    with path.open(newline="") as file:
        _, *table = csv.reader(file)
    return [Scored(row[0], row[1], row[2] == "True", float(row[3]), float(row[4])) for row in table]


def false_alarms(values: FloatArray, alpha: float, rng: np.random.Generator) -> FloatArray:
    """The rate of false alarms in each random split: one half calibrates, the other is new."""
    rates = []
    for _ in range(SPLITS):
        order = rng.permutation(len(values))
        half = len(values) // 2
        threshold = conformal_threshold(values[order[:half]].tolist(), alpha)
        rates.append(float((values[order[half:]] > threshold).mean()))
    return np.array(rates)


def f1_threshold(rows: list[Scored]) -> float:
    """The score from which on calling images defective gives the best F1."""
    precision, recall, thresholds = precision_recall_curve(
        [row.is_defective for row in rows], [row.score for row in rows]
    )
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[int(f1[:-1].argmax())])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/calibration"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="excerpts: mvtec/ and visa/")
    arguments = parser.parse_args()
    rows = all_scores(arguments.out, arguments.data)
    rng = np.random.default_rng(0)
    print("| data | category | n | promised | expected | score: mean (5-95 %) | map: mean (5-95 %) |")
    print("|---|---|---|---|---|---|---|")
    for data, alpha in (("drawn", 0.01), ("real", 0.2)):
        means, exact = [], []
        for category in sorted({row.category for row in rows if row.data == data}):
            good = [row for row in rows if (row.data, row.category, row.is_defective) == (data, category, False)]
            cells = []
            for values in (np.array([row.score for row in good]), np.array([row.highest for row in good])):
                rates = false_alarms(values, alpha, rng)
                low, high = np.quantile(rates, [0.05, 0.95])
                cells.append(f"{100 * rates.mean():.2f} ({100 * low:.1f}-{100 * high:.1f})")
                means.append(rates.mean())
            half = len(good) // 2
            rank = ceil((half + 1) * (1 - Fraction(str(alpha))))
            expected = 100 * (half + 1 - rank) / (half + 1)  # of scores that are all different
            exact.append(expected)
            print(f"| {data} | {category} | {half} | {100 * alpha:g} | {expected:.2f} | {' | '.join(cells)} |")
        error = 1.96 * np.std(means) / np.sqrt(len(means))
        mean = f"{100 * np.mean(means):.2f} +- {100 * error:.2f}"
        print(f"| {data} | mean of scores and maps | | {100 * alpha:g} | {np.mean(exact):.2f} | {mean} | |")
    names = sorted({row.category for row in rows if row.data == "drawn"})
    of = {name: [row for row in rows if (row.data, row.category) == ("drawn", name)] for name in names}
    limits = {name: f1_threshold(own) for name, own in of.items()}
    pairs = [(*rates_at(limits[source], of[target]), source, target) for source in names for target in names]
    print("\n| F1-max threshold of | used on | false alarms | escapes |\n|---|---|---|---|")
    own = [pair for pair in pairs if pair[2] == pair[3]]
    others = [pair for pair in pairs if pair[2] != pair[3]]
    for title, some in (("the category itself", own), ("another category", others)):
        (alarms, escapes), most = (
            np.mean([pair[:2] for pair in some], axis=0),
            np.max([pair[:2] for pair in some], axis=0),
        )
        cells = [
            f"{100 * mean:.1f}, at most {100 * high:.1f}" for mean, high in zip((alarms, escapes), most, strict=True)
        ]
        print(f"| {title} | mean of {len(some)} | {cells[0]} | {cells[1]} |")
    for worst in (max(others, key=lambda pair: pair[0]), max(others, key=lambda pair: pair[1])):
        print(f"| {worst[2]} | {worst[3]} | {100 * worst[0]:.1f} | {100 * worst[1]:.1f} |")


def rates_at(threshold: float, rows: list[Scored]) -> tuple[float, float]:
    """False alarms and escapes of a threshold."""
    alarms = np.mean([row.score >= threshold for row in rows if not row.is_defective])
    return float(alarms), float(np.mean([row.score < threshold for row in rows if row.is_defective]))


if __name__ == "__main__":
    main()
