# h, w = height, width of an image in pixels
"""The parts of an image that an anomaly map marks, and the files that hold them: a CSV and COCO's JSON.

Coordinates are those of the pixels' edges: x runs from 0 at the image's left edge to w at its right one, y from 0 at
the top to h. So pixel (x, y) is the polygon (x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Outline = list[list[tuple[int, int]]]
"""Closed polygons along the edges of pixels, as their corners (x, y): the outer border first, then those of holes."""

REGION_COLUMNS = ("image_path", "category", "region", "x", "y", "width", "height", "area", "highest", "outline")
"""The columns of regions.csv. `region` counts the regions of an image from 1."""


class Region(NamedTuple):
    """A connected part of what is marked.

    Attributes:
        x: the left edge of its bounding box, in pixels.
        y: the top edge.
        width: of the bounding box, in pixels.
        height: of the bounding box.
        area: the number of its pixels.
        highest: the highest value of the map in it.
        outline: its border, and those of its holes.

    Example:
        >>> Region(x=0, y=0, width=1, height=1, area=1, highest=0.5, outline=[[(0, 0), (0, 1), (1, 1), (1, 0)]]).area
        1
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    highest: float
    outline: Outline


def regions_of(anomaly_map: npt.NDArray[np.floating], threshold: float) -> list[Region]:
    """Find the 8-connected parts of what lies above a threshold.

    Args:
        anomaly_map: (h, w), at the image's own size, any range.
        threshold: of the map; a pixel is marked when its value is above it.

    Returns:
        The regions, the largest area first; of equal ones the upper, then the left one first.

    Raises:
        ValueError: the map has not two dimensions.

    Example:
        >>> anomaly_map = np.array([[0.9, 0.8, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.7]])
        >>> for region in regions_of(anomaly_map, threshold=0.5):
        ...     print(region.area, region.highest, region.outline)
        2 0.9 [[(0, 0), (0, 1), (2, 1), (2, 0)]]
        1 0.7 [[(2, 2), (2, 3), (3, 3), (3, 2)]]
    """
    if anomaly_map.ndim != 2:
        raise ValueError(f"Expected argument `anomaly_map` to be (h, w), but got the shape {anomaly_map.shape}.")
    # As float64: NumPy would round the threshold to a float32 map's precision first.
    marked = anomaly_map > np.float64(threshold)
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    if not len(rows):
        return []
    left, top = int(columns[0]), int(rows[0])
    inside = slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1)
    marked, values = marked[inside], anomaly_map[inside]
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(marked.view(np.uint8), connectivity=8)
    highest = np.full(count, -np.inf)
    np.maximum.at(highest, labels[marked], values[marked])
    outlines = _outlines(marked, labels, count, (left, top))
    regions = [
        Region(x + left, y + top, width, height, area, float(peak), outline)
        for (x, y, width, height, area), peak, outline in zip(boxes.tolist(), highest, outlines, strict=True)
    ]
    return sorted(regions[1:], key=lambda region: (-region.area, region.y, region.x))  # the first is the background


def _outlines(
    marked: npt.NDArray[np.bool_], labels: npt.NDArray[np.int32], count: int, origin: tuple[int, int]
) -> list[Outline]:
    """The outline of each label, that of the background empty."""
    # OpenCV follows the centres of border pixels. In an image of twice the size each edge of a pixel has centres of its
    # own at both sides, which belong to one corner.
    doubled = marked.view(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines: list[Outline] = [[] for _ in range(count)]
    for contour in contours:  # a hole comes after the border around it
        points = contour[:, 0]  # (N, 2)
        x, y = points[0] // 2
        corners = (points + 1) // 2
        corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)] + origin
        outlines[labels[y, x]].append(list(map(tuple, corners.tolist())))
    return outlines


def row_of(image_path: str, category: str, number: int, region: Region) -> list[str]:
    """A region as a row of regions.csv, see `REGION_COLUMNS`.

    The outline is text: `x y x y ...`, and a semicolon between polygons.

    Example:
        >>> row_of("0.png", "cup", 1, Region(0, 0, 2, 1, 2, 0.9, [[(0, 0), (0, 1), (2, 1), (2, 0)]]))
        ['0.png', 'cup', '1', '0', '0', '2', '1', '2', '0.9', '0 0 0 1 2 1 2 0']
    """
    *numbers, outline = region
    text = "; ".join(" ".join(f"{x} {y}" for x, y in polygon) for polygon in outline)
    return [image_path, category, str(number), *map(repr, numbers), text]


def region_from(row: Sequence[str]) -> Region:
    """Read a region from a row of regions.csv.

    Raises:
        ValueError: the row is not what `row_of` gives.

    Example:
        >>> region_from(["0.png", "cup", "1", "0", "0", "2", "1", "2", "0.9", "0 0 0 1 2 1 2 0"]).outline
        [[(0, 0), (0, 1), (2, 1), (2, 0)]]
    """
    _, _, _, x, y, width, height, area, highest, text = row
    outline: Outline = []
    for polygon in text.split(";"):
        values = [int(value) for value in polygon.split()]
        outline.append(list(zip(values[::2], values[1::2], strict=True)))
    if min(map(len, outline)) < 4:
        raise ValueError(f"expected polygons of 4 corners or more, found {text!r}")
    return Region(int(x), int(y), int(width), int(height), int(area), float(highest), outline)


def coco(images: Iterable[tuple[str, str, int, int]], rows: Iterable[Sequence[str]]) -> dict[str, list[dict[str, Any]]]:
    """Regions in the form of COCO's annotation files, https://cocodataset.org/#format-data.

    Tools look up a category by its name. So each object has one of its own, `<category> anomaly`; its
    `supercategory` is the object's category itself. `score` is the highest value of the map in the region.

    A polygon has no holes there. So a region without holes is its polygon, and one with holes is an uncompressed RLE:
    the lengths of the runs of 0 and 1 of a mask (h, w), column by column, that of 0 first. `iscrowd` is 0 for both:
    1 would mean a group of objects, which evaluations pass over.

    Args:
        images: (image_path, category, width, height) of each image, with or without regions. A path may be there
            several times, with other categories.
        rows: of regions.csv.

    Returns:
        `images`, `categories` and `annotations`; their ids count from 1.

    Raises:
        ValueError: a row is of no image of `images`, or is not what `row_of` gives.

    Example:
        >>> row = row_of("0.png", "cup", 1, Region(0, 0, 2, 1, 2, 0.9, [[(0, 0), (0, 1), (2, 1), (2, 0)]]))
        >>> found = coco([("0.png", "cup", 3, 3)], [row])
        >>> found["categories"]
        [{'id': 1, 'name': 'cup anomaly', 'supercategory': 'cup'}]
        >>> found["annotations"][0]["bbox"], found["annotations"][0]["segmentation"]
        ([0, 0, 2, 1], [[0, 0, 0, 1, 2, 1, 2, 0]])
    """
    sizes: dict[str, tuple[int, int]] = {}
    category_ids: dict[str, int] = {}
    for image_path, category, width, height in images:
        sizes[image_path] = width, height
        category_ids.setdefault(category, len(category_ids) + 1)
    image_ids = {image_path: number for number, image_path in enumerate(sizes, 1)}
    annotations: list[dict[str, Any]] = []
    for row in rows:
        image_path, category = row[:2]
        if image_path not in image_ids or category not in category_ids:
            raise ValueError(f"Expected argument `rows` to be of images in `images`, but got {image_path}, {category}.")
        region = region_from(row)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_ids[image_path],
                "category_id": category_ids[category],
                "bbox": list(region[:4]),
                "area": region.area,
                "segmentation": _segmentation(region, *sizes[image_path]),
                "iscrowd": 0,
                "score": region.highest,
            }
        )
    return {
        "images": [
            {"id": number, "file_name": image_path, "width": sizes[image_path][0], "height": sizes[image_path][1]}
            for image_path, number in image_ids.items()
        ],
        "categories": [
            {"id": number, "name": f"{category} anomaly", "supercategory": category}
            for category, number in category_ids.items()
        ],
        "annotations": annotations,
    }


def _segmentation(region: Region, width: int, height: int) -> list[list[int]] | dict[str, list[int]]:
    """Of a region in an image of this width and height."""
    if len(region.outline) == 1:
        return [[value for corner in region.outline[0] for value in corner]]
    inside = np.pad(_filled(region).T, ((0, 0), (1, 1)))  # (width, height + 2) of the box, columns first
    changes = np.argwhere(np.diff(inside, axis=1))  # (N, 2) column and row: where a run begins, and where it ends
    places = (region.x + changes[:, 0]) * height + region.y + changes[:, 1]
    # What ends at the bottom of the image goes on at the top of the next column: no change at all.
    places, times = np.unique(places, return_counts=True)
    counts = np.diff([0, *places[times == 1], width * height])
    return {"size": [height, width], "counts": counts.tolist()}


def _filled(region: Region) -> npt.NDArray[np.bool_]:
    """The pixels of a region in its bounding box (height, width)."""
    crossed = np.zeros((region.height + 1, region.width), bool)  # an edge above the pixel lies between in and out
    for polygon in region.outline:
        for (x, y), (next_x, next_y) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
            if y == next_y:
                left, right = sorted((x - region.x, next_x - region.x))
                crossed[y - region.y, left:right] ^= True
    inside: npt.NDArray[np.bool_] = np.logical_xor.accumulate(crossed, axis=0)[:-1]
    return inside
