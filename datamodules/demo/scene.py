"""What a drawing is, and the few brushes that every drawing shares.

S is the side of a square image in pixels. Colours are float32 in [0, 1], channels RGB. Coordinates run from -1 to 1.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


class Scene(NamedTuple):
    """A flawless drawing.

    image: (S, S, 3), what is seen. region: (S, S), where the object is and defects may be. behind: (S, S, 3), what
    would be seen if the object were not there.
    """

    image: Array
    region: Mask
    behind: Array


def value_noise(rng: np.random.Generator, size: int, cells: tuple[int, int]) -> Array:
    """Smooth noise (S, S) of about zero mean and unit variance, with `cells` (down, across) bumps over the image."""
    coarse = rng.standard_normal((cells[0] + 1, cells[1] + 1)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).astype(np.float32)


def fractal_noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 3) -> Array:
    """Noise (S, S) that has detail at several scales: each octave is twice as fine and half as strong."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        fine = cells * 2**octave
        total += value_noise(rng, size, (fine, fine)) * np.float32(0.5**octave)
    return total


def cell_noise(rng: np.random.Generator, u: Array, v: Array) -> tuple[Array, Array]:
    """Cells around scattered points, one point in each unit square of the plane (u, v).

    Returns two (S, S) arrays: the distance to the border of the own cell (0 on the border), and a value in [0, 1) that
    is constant within a cell.
    """
    low_u, low_v = int(np.floor(u.min())) - 1, int(np.floor(v.min())) - 1
    count = (int(np.floor(v.max())) - low_v + 3, int(np.floor(u.max())) - low_u + 3)
    jitter = rng.random((*count, 3), dtype=np.float32)
    column, row = np.floor(u).astype(np.int32) - low_u, np.floor(v).astype(np.int32) - low_v
    first = np.full(u.shape, 9, np.float32)
    second = first.copy()
    value = np.zeros_like(first)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            point = jitter[row + down, column + across]
            distance = np.hypot(
                column + across + low_u + point[..., 0] - u, row + down + low_v + point[..., 1] - v
            ).astype(np.float32)
            closer = distance < first
            second = np.where(closer, first, np.minimum(second, distance))
            value = np.where(closer, point[..., 2], value)
            first = np.where(closer, distance, first)
    return second - first, value


def plane(rng: np.random.Generator, size: int, scale: float = 1.0, shift: float = 0.0) -> tuple[Array, Array]:
    """Coordinates (u, v), each (S, S), of a plane that is turned at random, enlarged `scale` times and shifted."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis, axis)
    angle = rng.uniform(0, 2 * np.pi)
    x, y = x - np.float32(rng.uniform(-shift, shift)), y - np.float32(rng.uniform(-shift, shift))
    cosine, sine = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    return cosine * x + sine * y, cosine * y - sine * x


def colour(
    rng: np.random.Generator,
    hue: tuple[float, float] = (0, 360),
    saturation: tuple[float, float] = (0.1, 0.6),
    value: tuple[float, float] = (0.35, 0.85),
) -> Array:
    """A random colour (3,); hue in degrees, saturation and value in [0, 1]."""
    hsv = np.array([[[rng.uniform(*hue) % 360, rng.uniform(*saturation), rng.uniform(*value)]]], np.float32)
    rgb: Array = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
    return rgb


def blend(under: Array, over: Array, amount: Array) -> Array:
    """`over` laid on `under` (both broadcast to (S, S, 3)) with opacity `amount` (S, S)."""
    share = np.clip(amount, 0, 1)[..., None]
    return (under * (1 - share) + over * share).astype(np.float32)


def inside(distance: Array, softness: float = 0.012) -> Array:
    """Opacity (S, S) of a shape, from the signed distance to its border (negative inside)."""
    opacity: Array = np.clip(0.5 - distance / (2 * softness), 0, 1).astype(np.float32)
    return opacity
