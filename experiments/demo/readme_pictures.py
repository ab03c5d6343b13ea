"""Make the two pictures of README.md: cases of the demo with the maps of both methods, and the page of a run.

`python -m experiments.demo.readme_pictures [--runs outputs/demo] [--out docs/images]`, after `make demo`. The picture
of the page needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from PIL import Image

from datamodules.errors import UserError
from datamodules.images import UInt8Array, load_image, load_mask
from datamodules.records import Record
from experiments.demo.pictures import data_of, map_of, plt, resized
from src.callbacks.report import REPORT_FILE
from src.cli import exit_code_of
from src.report.pictures import PALETTE, blended
from src.run.predictions import iterate_predictions
from src.run.results import PREDICTIONS_FILE

RUNS = {"sdp": "SDP", "sdp_plus": "SDP+"}
CATEGORY = "coin"
CASES = ("deformed/001.png", "missing_part/004.png", "good/005.png")
PAGE_SIZE = (1200, 1400)  # px
COLOURS = ListedColormap(PALETTE / 255)


def draw_cases(runs: Path, path: Path) -> None:
    """Draw a row a case: the image, its ground truth, and the heat maps of both methods, coloured as on the page.

    Args:
        runs: the folder that `make demo` leaves, with the maps of both runs.
        path: the picture.

    Raises:
        UserError: there are no such runs.
    """
    if missing := [name for name in RUNS if not (runs / name / "maps" / CATEGORY).is_dir()]:
        raise UserError(f"expected the demo's runs in {runs}, but found no maps of {missing[0]}; run make demo first")
    records = {
        f"{record.image_path.parent.name}/{record.image_path.name}": record
        for record in data_of(runs / "sdp").records
        if record.category == CATEGORY
    }
    figure, axes = plt.subplots(len(CASES), 2 + len(RUNS), figsize=(8, 6.4), layout="constrained")
    for row, name in zip(axes, CASES, strict=True):
        image = load_image(records[name].image_path)
        _show(row[0], image, records[name])
        _show(row[1], image, records[name], outlined=True)
        row[0].set_ylabel(name.split("/")[0].replace("good", "flawless"))
    axes[0][0].set_title("image")
    axes[0][1].set_title("ground truth")
    for (run, title), column in zip(RUNS.items(), axes.T[2:], strict=True):
        _draw_maps(runs / run, [records[name] for name in CASES], column, title)
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 85})
    plt.close(figure)


def _draw_maps(run: Path, records: list[Record], column: list[Axes], title: str) -> None:
    """The maps of one run down a column; their colours run from the lowest value of the category to the highest."""
    maps = [np.load(file) for file in run.glob(f"maps/{CATEGORY}/*/*.npy")]
    low, high = float(np.min(maps)), float(np.max(maps))
    scores = {row.image_path: row.single_score for row in iterate_predictions(run / PREDICTIONS_FILE)}
    for axis, record in zip(column, records, strict=True):
        overlay = blended(load_image(record.image_path), map_of(run, record), low, high)
        _show(axis, overlay, record, outlined=True)
        (score,) = (value for name, value in scores.items() if record.image_path.as_posix().endswith(name))
        axis.set_xlabel(f"single_score {score:.2f}", fontsize=9)
    column[0].set_title(title)
    bar = column[0].figure.colorbar(ScalarMappable(Normalize(low, high), COLOURS), ax=column[-1], location="bottom")
    bar.set_ticks([low, high], labels=[f"{low:.2f}", f"{high:.2f}"])


def _show(axis: Axes, image: UInt8Array, record: Record, outlined: bool = False) -> None:
    axis.imshow(image)
    axis.set_xticks([])
    axis.set_yticks([])
    if outlined and record.mask_path is not None:
        axis.contour(
            resized(load_mask(record.mask_path), image.shape[:2]), levels=[0.5], colors="white", linewidths=1.2
        )


def picture_page(report: Path, path: Path) -> None:
    """Take a picture of a run's page: curves and gallery of a category.

    Raises:
        UserError: the page, playwright or Chromium is not there.
    """
    if not report.exists():
        raise UserError(f"expected {report}; run make demo first")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise UserError('expected playwright for a picture of the page; pip install -e ".[dev]"') from error
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium)
        except Error as error:
            raise UserError("expected Chromium for a picture of the page; install Debian's package chromium") from error
        width, height = PAGE_SIZE
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(report.absolute().as_uri())
        for control in ("#curve-category", "#gallery-category"):
            page.locator(control).select_option(label=CATEGORY)
        page.locator("#gallery-sort").select_option(label="Score, highest first")
        page.locator("#curves").evaluate("section => section.scrollIntoView()")
        page.wait_for_timeout(1000)  # ms, until the charts are drawn
        picture = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(picture)).save(path, quality=80, method=6)


def main() -> None:
    """Make both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()

    def make() -> None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, draw, source in (
            ("cases.webp", draw_cases, arguments.runs),
            ("report.webp", picture_page, arguments.runs / "sdp_plus" / REPORT_FILE),
        ):
            draw(source, arguments.out / name)
            print(f"{arguments.out / name}: {(arguments.out / name).stat().st_size / 1000:.0f} kB")

    sys.exit(exit_code_of(make))


if __name__ == "__main__":
    main()
