"""The regions that a map marks, against a flood fill pixel by pixel, and their files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from src.regions import REGION_COLUMNS, Outline, Region, coco, region_from, regions_of, row_of

Mask = npt.NDArray[np.bool_]
# Few values, so that equal ones, holes and pixels that touch at a corner are frequent.
MAPS = stnp.arrays(
    np.float32, stnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0.25, 0.5, 0.75, 1.0])
)


def flooded(marked: Mask) -> list[set[tuple[int, int]]]:
    """The 8-connected parts, as sets of (x, y)."""
    left = {(int(x), int(y)) for y, x in np.argwhere(marked)}
    parts = []
    while left:
        waiting = [left.pop()]
        part = set(waiting)
        while waiting:
            x, y = waiting.pop()
            near = {(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)} & left
            left -= near
            part |= near
            waiting += near
        parts.append(part)
    return parts


def inside_of(outline: Outline, shape: tuple[int, int]) -> set[tuple[int, int]]:
    """The pixels inside, by counting the edges that a ray from a pixel's centre to the left crosses."""
    edges = [
        (start, end)
        for polygon in outline
        for start, end in zip(polygon, [*polygon[1:], polygon[0]], strict=True)
        if start[0] == end[0]
    ]
    return {
        (x, y)
        for y in range(shape[0])
        for x in range(shape[1])
        if sum(a[0] <= x and min(a[1], b[1]) <= y < max(a[1], b[1]) for a, b in edges) % 2
    }


def signed_area(polygon: list[tuple[int, int]]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(polygon, [*polygon[1:], polygon[0]], strict=True)) / 2


@settings(max_examples=300, deadline=None)
@given(MAPS, st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_regions_are_those_of_a_flood_fill(anomaly_map: np.ndarray, threshold: float) -> None:
    found = regions_of(anomaly_map, threshold)
    parts = flooded(anomaly_map > threshold)
    assert sorted(map(sorted, parts)) == sorted(sorted(inside_of(one.outline, anomaly_map.shape)) for one in found)
    assert [one.area for one in found] == sorted(map(len, parts), reverse=True)
    for region in found:
        pixels = inside_of(region.outline, anomaly_map.shape)
        x, y = ([pixel[axis] for pixel in pixels] for axis in (0, 1))
        assert (region.x, region.y, region.width, region.height) == (
            min(x),
            min(y),
            max(x) - min(x) + 1,
            max(y) - min(y) + 1,
        )
        assert region.highest == max(anomaly_map[y, x] for x, y in pixels)


@settings(max_examples=300, deadline=None)
@given(MAPS)
def test_outlines_turn_at_corners_only_and_the_outer_border_comes_first(anomaly_map: np.ndarray) -> None:
    for region in regions_of(anomaly_map, 0.5):
        outer, *holes = region.outline
        areas = [signed_area(polygon) for polygon in region.outline]
        assert all(area * areas[0] < 0 for area in areas[1:])  # holes run the other way round
        assert abs(sum(areas)) == region.area
        assert (min(outer)[0], min(y for _, y in outer)) == (region.x, region.y)
        for polygon in (outer, *holes):
            for before, corner, after in zip(
                polygon, polygon[1:] + polygon[:1], polygon[2:] + polygon[:2], strict=True
            ):
                steps = [corner[0] - before[0], corner[1] - before[1]], [after[0] - corner[0], after[1] - corner[1]]
                assert [0 in step and any(step) for step in steps] == [True, True]  # along one axis
                assert (steps[0][0] == 0) != (steps[1][0] == 0)  # and then along the other one


def test_a_pixel_at_the_threshold_is_not_marked() -> None:
    anomaly_map = np.array([[0.1, 0.2]], np.float32)
    assert [one.area for one in regions_of(anomaly_map, float(np.float32(0.1)))] == [1]
    assert [one.area for one in regions_of(anomaly_map, 0.1)] == [2]  # as float32 0.1 is a little more
    assert regions_of(anomaly_map, 0.3) == []


def test_of_regions_of_one_area_the_upper_and_left_ones_come_first() -> None:
    anomaly_map = np.zeros((5, 9))
    anomaly_map[0, 6] = anomaly_map[4, 0] = anomaly_map[4, 4] = anomaly_map[2, 2] = 1
    anomaly_map[4, 7:9] = 1
    assert [(one.x, one.y) for one in regions_of(anomaly_map, 0.5)] == [(7, 4), (6, 0), (2, 2), (0, 4), (4, 4)]


def test_a_map_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`anomaly_map` to be \(h, w\), but got the shape \(1, 2, 2\)"):
        regions_of(np.zeros((1, 2, 2)), 0.5)


def smooth_map(height: int, width: int, seed: int) -> np.ndarray:
    """Blobs of all sizes, some with holes."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 3)
    return blurred / blurred.std()


@pytest.mark.parametrize("seed", range(3))
def test_a_large_map_has_the_outlines_of_its_mask(seed: int) -> None:
    anomaly_map = smooth_map(300, 420, seed)
    found = regions_of(anomaly_map, 0.8)
    assert len(found) > 20
    assert any(len(one.outline) > 1 for one in regions_of(anomaly_map, -0.2))
    assert sum(one.area for one in found) == int((anomaly_map > 0.8).sum())
    for region in regions_of(anomaly_map, -0.2)[:5]:
        x, y, w, h = region[:4]
        # Drawn by OpenCV in four times the size, where the edges of pixels lie between pixels.
        canvas = np.zeros((4 * h, 4 * w), np.uint8)
        moved = [4 * (np.array(polygon) - (x, y)) for polygon in region.outline]
        cv2.fillPoly(canvas, [np.clip(polygon, 0, (4 * w - 1, 4 * h - 1)).astype(np.int32) for polygon in moved], 1)
        centres = canvas[2::4, 2::4].astype(bool)
        _, labels = cv2.connectedComponents((anomaly_map > -0.2).astype(np.uint8), connectivity=8)
        inner = labels[y : y + h, x : x + w]
        own = np.bincount(inner[centres]).argmax()
        assert (centres == (inner == own)).all()


def in_csv(rows: Iterable[list[str]]) -> list[list[str]]:
    """Written and read again."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return list(csv.reader(io.StringIO(text.getvalue(), newline="")))


@settings(max_examples=100, deadline=None)
@given(MAPS, st.text("ab,;\"'[]= \né", min_size=1), st.text('ä,;"金=', min_size=1))
def test_a_row_gives_the_region_again(anomaly_map: np.ndarray, path: str, category: str) -> None:
    regions = regions_of(anomaly_map / 3, 0.2)
    rows = [row_of(path, category, number, region) for number, region in enumerate(regions, 1)]
    assert all(len(row) == len(REGION_COLUMNS) for row in rows)
    for number, (row, region) in enumerate(zip(in_csv(rows), regions, strict=True), 1):
        assert row[:3] == [path, category, str(number)]
        assert region_from(row) == region


@pytest.mark.parametrize("outline", ["", "1 2 3", "a b c d"])
def test_a_damaged_row_is_refused(outline: str) -> None:
    with pytest.raises(ValueError, match=r"corners|zip|int"):
        region_from(["0.png", "cup", "1", "0", "0", "1", "1", "1", "0.5", outline])


def mask_of(segmentation: list[list[int]] | dict[str, list[int]], height: int, width: int) -> Mask:
    """Decode a segmentation as COCO says it, one pixel at a time."""
    mask = np.zeros((height, width), bool)
    if isinstance(segmentation, dict):
        assert segmentation["size"] == [height, width]
        values = [bool(i % 2) for i, count in enumerate(segmentation["counts"]) for _ in range(count)]
        assert len(values) == height * width
        for place, value in enumerate(values):
            mask[place % height, place // height] = value
        return mask
    [polygon] = segmentation
    for x, y in inside_of([list(zip(polygon[::2], polygon[1::2], strict=True))], (height, width)):
        mask[y, x] = True
    return mask


@settings(max_examples=300, deadline=None)
@given(MAPS)
def test_coco_gives_the_pixels_of_each_region(anomaly_map: np.ndarray) -> None:
    height, width = anomaly_map.shape
    regions = regions_of(anomaly_map, 0.5)
    rows = [row_of("a.png", "cup", number, region) for number, region in enumerate(regions, 1)]
    written = coco([("a.png", "cup", width, height)], rows)["annotations"]
    assert len(written) == len(regions)
    parts = {frozenset(part) for part in flooded(anomaly_map > 0.5)}
    for annotation, region in zip(written, regions, strict=True):
        mask = mask_of(annotation["segmentation"], height, width)
        assert isinstance(annotation["segmentation"], dict) == (len(region.outline) > 1)
        assert frozenset((int(x), int(y)) for y, x in np.argwhere(mask)) in parts
        assert annotation["area"] == mask.sum() == region.area
        rows_with, columns_with = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        assert annotation["bbox"] == [
            columns_with[0],
            rows_with[0],
            columns_with[-1] - columns_with[0] + 1,
            rows_with[-1] - rows_with[0] + 1,
        ]
        assert (annotation["score"], annotation["iscrowd"]) == (region.highest, 0)


def test_a_ring_that_fills_the_image_is_one_run_over_several_columns() -> None:
    anomaly_map = np.ones((3, 4))
    anomaly_map[1, 2] = 0
    [region] = regions_of(anomaly_map, 0.5)
    [annotation] = coco([("a.png", "cup", 4, 3)], [row_of("a.png", "cup", 1, region)])["annotations"]
    # 0 of nothing, then columns 0 and 1 and the upper pixel of 2, the hole, and the rest.
    assert annotation["segmentation"] == {"size": [3, 4], "counts": [0, 7, 1, 4, 0]}


def test_coco_names_images_and_categories_once() -> None:
    region = Region(0, 0, 1, 1, 1, 0.5, [[(0, 0), (0, 1), (1, 1), (1, 0)]])
    images = [("a.png", "cup", 8, 4), ("a.png", "metal nut", 8, 4), ("b.png", "cup", 6, 6)]
    rows = [row_of("a.png", "cup", 1, region), row_of("a.png", "metal nut", 1, region)]
    found = coco(images, rows)
    assert found["images"] == [
        {"id": 1, "file_name": "a.png", "width": 8, "height": 4},
        {"id": 2, "file_name": "b.png", "width": 6, "height": 6},  # with no region
    ]
    assert [(one["id"], one["name"], one["supercategory"]) for one in found["categories"]] == [
        (1, "cup anomaly", "cup"),
        (2, "metal nut anomaly", "metal nut"),
    ]
    assert [(one["id"], one["image_id"], one["category_id"]) for one in found["annotations"]] == [(1, 1, 1), (2, 1, 2)]


def test_coco_refuses_a_row_of_another_image() -> None:
    region = Region(0, 0, 1, 1, 1, 0.5, [[(0, 0), (0, 1), (1, 1), (1, 0)]])
    with pytest.raises(ValueError, match=r"`rows` to be of images in `images`, but got b\.png, cup"):
        coco([("a.png", "cup", 8, 4)], [row_of("b.png", "cup", 1, region)])
