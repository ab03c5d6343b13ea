# H, W = height, width of an array; S = size of the model's images
"""Pictures of images, anomaly maps and masks, small enough for a page.

A heat map's colours mean something only if the images of a category share one scale. With a scale of its own each
image has a brightest spot, and flawless images look defective.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.floating]

MAP_SIZE = 256  # px, of maps that are kept for overlays; they are smooth, and no network gives finer ones
TILED_MAP_SIZE = 2048  # px, of maps that were blended from tiles, which are finer
HEAT_MAP_SIZE = 96  # px, of heat maps on a page, which the browser enlarges smoothly


OUTLINE_COLOUR = (0, 229, 255)
"""RGB of the borders of what a threshold marks: a colour that heat maps do not have. page.css has it, too."""

# Yellow, orange, red, dark red: brightness falls as the value rises, so it reads the same without colour vision.
_ANCHORS = ((255, 240, 60), (255, 200, 0), (255, 130, 0), (235, 20, 10), (125, 0, 50))


def _palette() -> UInt8Array:
    """256 colours RGBA: nothing to see at the low end, dark red at the high end."""
    share = np.linspace(0, 1, 256)
    places = np.linspace(0, 1, len(_ANCHORS))
    channels = [np.interp(share, places, values) for values in zip(*_ANCHORS, strict=True)]
    palette: UInt8Array = np.rint([*channels, 255 * share**1.2]).astype(np.uint8).T
    return palette


PALETTE = _palette()
"""(256, 4) uint8 RGBA, from the lowest value of a category to its highest."""


def css_colours(count: int = 16) -> list[str]:
    """Colours of the palette for a legend, from low to high.

    Example:
        >>> css_colours(2)
        ['rgb(255 240 60 / 0.00)', 'rgb(125 0 50 / 1.00)']
    """
    chosen = PALETTE[np.linspace(0, 255, count).round().astype(int)]
    return [f"rgb({red} {green} {blue} / {alpha / 255:.2f})" for red, green, blue, alpha in chosen.tolist()]


def jpeg(image: UInt8Array, size: int) -> bytes:
    """Encode (H, W, 3) RGB as JPEG, both sides at most ``size`` pixels.

    The quality is 80. It falls, down to 20, while the picture takes more than a quarter of a byte a pixel, as grainy
    textures do: a page of 2000 pictures stays below 60 MB.

    Example:
        >>> Image.open(io.BytesIO(jpeg(np.zeros((40, 60, 3), np.uint8), size=20))).size
        (20, 20)
    """
    small = _shrunk(image, size)[..., ::-1]
    content = b""
    for quality in (80, 60, 40, 20):
        content = _encoded(".jpg", small, cv2.IMWRITE_JPEG_QUALITY, quality)
        if len(content) <= size * size // 4:
            break
    return content


def denormalised(image: FloatArray, mean: Sequence[float], std: Sequence[float]) -> UInt8Array:
    """(3, S, S) as the model gets it -> (S, S, 3) RGB.

    Example:
        >>> denormalised(np.zeros((3, 1, 1), np.float32), mean=(0, 0.5, 1), std=(1, 1, 1)).tolist()
        [[[0, 128, 255]]]
    """
    scale, offset = (255 * np.asarray(values, np.float32)[:, None, None] for values in (std, mean))
    pixels = np.clip(image * scale + (offset + 0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def pack_map(anomaly_map: FloatArray, size: int = MAP_SIZE) -> tuple[float, float, bytes]:
    """Encode a map (H, W) in 8 bits between its lowest and highest value, both sides at most `size` pixels.

    Returns:
        The lowest value, the highest, and a greyscale PNG. A value is off by at most half a 255th of the range.

    Example:
        >>> low, high, png = pack_map(np.array([[-1.0, 0.0], [0.5, 1.0]]))
        >>> low, high, unpack_map(low, high, png).round(2).tolist()
        (-1.0, 1.0, [[-1.0, 0.0], [0.5, 1.0]])
    """
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    return (
        low,
        high,
        _encoded(".png", _levels(_shares(_shrunk(anomaly_map, size), low, high)), cv2.IMWRITE_PNG_COMPRESSION, 1),
    )


def unpack_map(low: float, high: float, png: bytes) -> FloatArray:
    """Decode what `pack_map` has made.

    Raises:
        ValueError: it is no PNG.

    Example:
        >>> unpack_map(*pack_map(np.array([[0.25, 0.75]]))).tolist()
        [[0.25, 0.75]]
    """
    levels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE) if png else None
    if levels is None:
        raise ValueError("a map is no PNG")
    values: FloatArray = low + (high - low) * (levels.astype(np.float64) / 255)
    return values


def heat_map(anomaly_map: FloatArray, low: float, high: float, size: int = HEAT_MAP_SIZE) -> bytes:
    """Colour a map (H, W) by the palette and encode it as PNG, both sides at most ``size`` pixels.

    Args:
        anomaly_map: any range.
        low: the value of the palette's low end: the lowest of the category.
        high: the value of its high end.
        size: in pixels.

    Example:
        >>> png = heat_map(np.array([[0.0, 1.0]]), low=0.0, high=1.0)
        >>> Image.open(io.BytesIO(png)).convert("RGBA").getpixel((1, 0))
        (125, 0, 50, 255)
    """
    picture = Image.fromarray(_levels(_shares(_shrunk(anomaly_map, size), low, high)), "P")
    picture.putpalette(PALETTE[:, :3].tobytes())
    content = io.BytesIO()
    picture.save(content, "png", transparency=PALETTE[:, 3].tobytes(), compress_level=6)
    return content.getvalue()


def blended(image: UInt8Array, anomaly_map: FloatArray, low: float, high: float, opacity: float = 0.85) -> UInt8Array:
    """Lay a coloured map over its image (H, W, 3), at the image's size.

    Example:
        >>> grey = np.full((4, 4, 3), 100, np.uint8)
        >>> blended(grey, np.array([[0.0, 0.0], [0.0, 1.0]]), low=0.0, high=1.0)[0, 0].tolist()
        [100, 100, 100]
    """
    height, width = image.shape[:2]
    shares = _shares(anomaly_map, low, high).astype(np.float32)
    coloured = PALETTE[_levels(resized(shares, (width, height)))]  # (H, W, 4)
    weight = opacity / 255 * coloured[..., 3:].astype(np.float32)
    return np.rint(image + weight * (coloured[..., :3].astype(np.float32) - image)).astype(np.uint8)


def outline(mask: UInt8Array) -> str:
    """The border of what a mask (H, W) {0, 1} marks, as an SVG path in a square of 1000 x 1000.

    It is empty if the mask marks nothing.

    Example:
        >>> outline(np.array([[0, 0], [1, 1]], np.uint8))
        'M0 500L0 1000L1000 1000L1000 500Z'
    """
    small = (_shrunk(mask.astype(np.float32), MAP_SIZE) > 0).astype(np.uint8)  # what is smaller than a pixel, too
    height, width = small.shape
    # Enlarged, so that the border runs along the edges of pixels and a single pixel has one, too.
    doubled = cv2.resize(np.pad(small, 1), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([1000 / width, 1000 / height])
    paths = []
    for contour in contours:
        corners = np.clip(np.floor(contour[:, 0] / 2 - 1 + 0.5), 0, (width, height)) * scale
        points = [f"{x:.0f} {y:.0f}" for x, y in corners]
        paths.append(f"M{'L'.join(dict.fromkeys(points))}Z")
    return "".join(paths)


def outlined(image: UInt8Array, polygons: Sequence[Sequence[tuple[int, int]]]) -> UInt8Array:
    """Draw polygons on a copy of an image (H, W, 3): a bright line, dark on its outer side, wider in a larger image.

    Args:
        image: RGB.
        polygons: corners (x, y) along the edges of pixels, see `src.regions`.

    Example:
        >>> drawn = outlined(np.full((9, 9, 3), 100, np.uint8), [[(3, 3), (3, 6), (6, 6), (6, 3)]])
        >>> drawn[4, 3].tolist(), drawn[4, 2].tolist(), drawn[4, 4].tolist()
        ([0, 229, 255], [0, 0, 0], [100, 100, 100])
    """
    height, width = image.shape[:2]
    line = max(round(max(height, width) / 400), 1)
    # A line along the right or the lower edge of the image would lie outside.
    lines = [np.clip(np.array(polygon, np.int32), 0, (width - 1, height - 1)).astype(np.int32) for polygon in polygons]
    drawn: UInt8Array = image.copy()
    if lines:
        cv2.polylines(drawn, lines, isClosed=True, color=(0, 0, 0), thickness=3 * line)
        inside = cv2.fillPoly(np.zeros((height, width), np.uint8), lines, 1).astype(bool)
        drawn[inside] = image[inside]  # of a small region nothing would be left to see
        cv2.polylines(drawn, lines, isClosed=True, color=OUTLINE_COLOUR, thickness=line)
    return drawn


def svg_path(polygons: Sequence[Sequence[tuple[int, int]]], width: int, height: int) -> str:
    """Polygons in pixels of an image as an SVG path in a square of 1000 x 1000, see `outline`.

    The border is off by at most three thousandths of a side, so that steps of pixels become lines; no polygon vanishes.

    Example:
        >>> svg_path([[(0, 0), (0, 2), (4, 2), (4, 0)]], width=4, height=4)
        'M0 0L0 500L1000 500L1000 0Z'
    """
    paths = []
    for polygon in polygons:
        corners = np.array(polygon, np.float32) * (1000 / width, 1000 / height)
        simple = cv2.approxPolyDP(corners.astype(np.float32)[:, None], 3.0, closed=True)[:, 0]
        points = [f"{round(x, 1):g} {round(y, 1):g}" for x, y in (simple if len(simple) > 2 else corners).tolist()]
        paths.append(f"M{'L'.join(points)}Z")
    return "".join(paths)


def decoded(picture: bytes) -> UInt8Array:
    """Decode what `jpeg` has made to (H, W, 3) RGB.

    Example:
        >>> decoded(jpeg(np.full((4, 6, 3), 200, np.uint8), 256)).shape
        (4, 6, 3)
    """
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def resized(array: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
    """Bring (H, W) or (H, W, 3) to a width and height.

    Example:
        >>> resized(np.zeros((4, 6)), (3, 2)).shape
        (2, 3)
    """
    shrinks = shape[0] < array.shape[1]
    return cv2.resize(array, shape, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _shrunk(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """(H, W) or (H, W, 3) with both sides at most `size`."""
    shape = min(array.shape[1], size), min(array.shape[0], size)
    return (
        array if shape == (array.shape[1], array.shape[0]) else cv2.resize(array, shape, interpolation=cv2.INTER_AREA)
    )


def _shares(values: FloatArray, low: float, high: float) -> FloatArray:
    """Values as 0 to 1 of a range; of a range of nothing 0."""
    if not high > low:
        return np.zeros(values.shape)
    # float64, since the range of float32 values may be too large for a float32
    shares: FloatArray = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    return shares


def _levels(shares: FloatArray) -> UInt8Array:
    """0 to 1 as 0 to 255."""
    levels: UInt8Array = np.rint(255 * shares).astype(np.uint8)
    return levels


def _encoded(suffix: str, picture: npt.NDArray[Any], *options: int) -> bytes:
    _, content = cv2.imencode(suffix, picture, options)
    return content.tobytes()
