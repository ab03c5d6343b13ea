"""Pictures small enough for a page, that still show what the arrays hold."""

import io
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from src.regions import regions_of
from src.report.pictures import (
    OUTLINE_COLOUR,
    PALETTE,
    blended,
    denormalised,
    heat_map,
    jpeg,
    outline,
    outlined,
    pack_map,
    svg_path,
    unpack_map,
)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, (height, width)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 8)


def test_a_packed_map_is_off_by_half_a_step_at_most() -> None:
    anomaly_map = 0.02 * smooth(100, 80) - 3
    low, high, png = pack_map(anomaly_map)
    assert (low, high) == (anomaly_map.min(), anomaly_map.max())
    assert np.abs(unpack_map(low, high, png) - anomaly_map).max() <= (high - low) / 255 / 2 * 1.01


def test_a_map_of_one_value_comes_back() -> None:
    assert unpack_map(*pack_map(np.full((5, 5), 0.25))).tolist() == np.full((5, 5), 0.25).tolist()


def test_a_large_map_keeps_its_shape_and_its_values() -> None:
    anomaly_map = smooth(600, 900)
    low, high, png = pack_map(anomaly_map)
    packed = unpack_map(low, high, png)
    assert packed.shape == (256, 256)
    assert np.abs(cv2.resize(anomaly_map, (256, 256), interpolation=cv2.INTER_AREA) - packed).max() < (high - low) / 200


def test_what_is_no_map_is_refused() -> None:
    for content in (b"", b"no picture"):
        with pytest.raises(ValueError, match="PNG"):
            unpack_map(0, 1, content)


def rgba(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def test_images_of_a_category_share_the_scale_of_their_colours() -> None:
    flawless, defective = np.full((8, 8), 0.1), np.linspace(0.1, 1.0, 64).reshape(8, 8)
    assert (rgba(heat_map(flawless, 0.1, 1.0))[..., 3] == 0).all()  # with its own scale it would have a brightest spot
    coloured = rgba(heat_map(defective, 0.1, 1.0))
    assert coloured[-1, -1].tolist() == PALETTE[255].tolist()
    assert (np.diff(coloured[..., 3].ravel().astype(int)) >= 0).all()


def test_an_overlay_has_the_colours_of_the_page() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    values = smooth(64, 64)
    low, high = float(values.min()), float(values.max())
    coloured = rgba(heat_map(values, low, high)).astype(float)
    weight = 0.5 * coloured[..., 3:] / 255
    expected = (1 - weight) * image + weight * coloured[..., :3]
    assert np.abs(blended(image, values, low, high, opacity=0.5) - expected).max() <= 0.51


def test_an_overlay_has_the_size_of_its_image() -> None:
    assert blended(np.zeros((30, 70, 3), np.uint8), smooth(10, 10), -1, 1).shape == (30, 70, 3)


def area_of(path: str) -> float:
    """By the shoelace formula; holes count as negative, since they run the other way round."""
    total = 0.0
    for part in re.findall(r"M([^Z]*)Z", path):
        points = np.array([[float(v) for v in point.split()] for point in part.split("L")])
        x, y = points.T
        total += (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    return abs(total)


@pytest.mark.parametrize("shape", [(20, 20), (40, 20), (200, 200)])
def test_an_outline_encloses_what_the_mask_marks(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[2:9, 3:11] = 1
    mask[5:7, 5:7] = 0  # a hole
    mask[-4:, -2:] = 1  # at the border
    mask[15, 2] = 1  # one pixel
    assert area_of(outline(mask)) == pytest.approx(1e6 * mask.mean(), rel=0.02)


def test_an_outline_shows_what_is_smaller_than_a_pixel_of_the_page() -> None:
    mask = np.zeros((1024, 2048), np.uint8)
    mask[512, 1024] = 1
    area = area_of(outline(mask))
    assert 0 < area <= (1000 / 256) ** 2 * 1.5


def test_the_path_of_polygons_encloses_what_they_enclose() -> None:
    mask = smooth(300, 400) > 0.02
    polygons = [polygon for region in regions_of(mask.astype(float), 0.5) for polygon in region.outline]
    path = svg_path(polygons, width=400, height=300)
    assert area_of(path) == pytest.approx(1e6 * mask.mean(), rel=0.02)
    assert len(path) < len(outline(mask.astype(np.uint8)))


def test_the_path_of_a_pixel_of_a_large_image_is_there() -> None:
    polygon = [(3000, 2000), (3000, 2001), (3001, 2001), (3001, 2000)]
    assert 0 < area_of(svg_path([polygon], width=6000, height=4000)) <= 0.3 * 0.3
    assert svg_path([], width=6000, height=4000) == ""


@pytest.mark.parametrize(("height", "width", "thickness"), [(60, 90, 1), (900, 400, 2), (1000, 4000, 10)])
def test_lines_have_the_borders_of_regions_and_are_wider_in_a_larger_image(
    height: int, width: int, thickness: int
) -> None:
    anomaly_map = np.zeros((height, width))
    top, left = height // 3, width // 3
    anomaly_map[top : 2 * top, left : 2 * left] = 1
    [region] = regions_of(anomaly_map, 0.5)
    grey = np.full((height, width, 3), 128, np.uint8)
    drawn = outlined(grey, region.outline)
    assert (grey == 128).all()
    row = drawn[height // 2]
    bright = np.flatnonzero((row == OUTLINE_COLOUR).all(axis=1))
    assert abs(len(bright) - 2 * thickness) <= 2
    for edge, side in ((left, bright[: len(bright) // 2]), (2 * left, bright[len(bright) // 2 :])):
        assert abs(side.mean() + 0.5 - edge) <= 1
    dark = np.flatnonzero((row == 0).all(axis=1))
    assert len(dark) >= 2  # at both sides, and outside
    assert ((dark < left) | (dark >= 2 * left)).all()
    assert (drawn[height // 2, width // 2] == 128).all()


def test_a_region_of_the_whole_image_has_its_lines_inside() -> None:
    [region] = regions_of(np.ones((20, 30)), 0.5)
    drawn = outlined(np.zeros((20, 30, 3), np.uint8), region.outline)
    for side in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (side == OUTLINE_COLOUR).all()


def test_grain_costs_quality_not_space() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    calm = cv2.GaussianBlur(noise, (0, 0), 8)
    for size in (256, 512):
        assert len(jpeg(cv2.GaussianBlur(noise, (0, 0), 1.0), size)) <= size * size / 4
    _, best = cv2.imencode(".jpg", calm[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 80))
    assert jpeg(calm, 512) == best.tobytes()


def test_an_outline_of_nothing_is_empty() -> None:
    assert outline(np.zeros((9, 9), np.uint8)) == ""
    assert area_of(outline(np.ones((9, 9), np.uint8))) == 1e6


def test_a_picture_is_what_the_model_saw() -> None:
    generator = np.random.default_rng(0)
    pixels = cv2.GaussianBlur(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8), (0, 0), 3)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    normalised = ((pixels / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32)
    assert (denormalised(normalised, mean, std) == pixels).all()
    decoded = np.asarray(Image.open(io.BytesIO(jpeg(pixels, 256))))
    assert np.abs(decoded.astype(int) - pixels).mean() < 2
