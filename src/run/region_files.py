"""`regions.csv` and `regions.coco.json`: what a run has marked by a threshold of its maps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from src.files import damaged, write_json
from src.regions import REGION_COLUMNS, Outline, coco, region_from
from src.run.journal import Journal, Name
from src.run.results import REGIONS_FILE

COCO_FILE = "regions.coco.json"


def regions_journal(folder: Path) -> Journal:
    """The table of a run's regions: a row a region, see `src.regions.row_of`.

    Example:
        >>> regions_journal(Path("outputs/mine")).path.as_posix()
        'outputs/mine/regions.csv'
    """
    return Journal(folder / REGIONS_FILE, REGION_COLUMNS)


def read_outlines(folder: Path) -> dict[Name, Outline]:
    """Category and path of each image that has regions -> the polygons of all of them.

    Raises:
        UserError: the table is damaged.

    Example:
        >>> read_outlines(Path("outputs/without_threshold"))
        {}
    """
    outlines: dict[Name, Outline] = {}
    for row in regions_journal(folder).rows():
        try:
            outlines.setdefault((row[1], row[0]), []).extend(region_from(row).outline)
        except ValueError as error:
            raise damaged(folder / REGIONS_FILE, str(error)) from error
    return outlines


def write_coco(folder: Path, images: Iterable[tuple[str, str, int, int]]) -> None:
    """Write the regions of a run once more, in COCO's form; see `src.regions.coco`.

    Args:
        folder: of the run.
        images: (image_path, category, width, height) of each. Regions of other images are left out.

    Raises:
        UserError: the table is damaged.
        OSError: the disk is full.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_coco(Path(folder), [("0.png", "cup", 640, 480)])
        ...     print(Path(folder, "regions.coco.json").exists())
        True
    """
    images = list(images)
    known = {(image_path, category) for image_path, category, _, _ in images}
    rows = [row for row in regions_journal(folder).rows() if (row[0], row[1]) in known]
    try:
        content = coco(images, rows)
    except ValueError as error:
        raise damaged(folder / REGIONS_FILE, str(error)) from error
    write_json(folder / COCO_FILE, content)
