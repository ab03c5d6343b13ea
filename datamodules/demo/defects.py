"""Kinds of damage. Each function takes a flawless scene and returns the damaged image and its opacity.

`(rng, scene) -> (painted (S, S, 3), opacity (S, S) in [0, 1])`. Lengths are in pixels of an image of side 128 and
scale with the side. What is seen, and the exact mask, is put together by `render.damage`.
"""

import cv2
import numpy as np

from datamodules.demo.scene import Array, Mask, Scene, colour, value_noise

Painted = tuple[Array, Array]


def _unit(scene: Scene) -> float:
    return float(scene.image.shape[0]) / 128


def _spot(rng: np.random.Generator, region: Mask, margin: float) -> tuple[float, float]:
    """A random point (x, y) of the region, `margin` pixels or more from its border, or about as deep as it goes."""
    padded = np.pad(region.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    ys, xs = np.nonzero(depth >= min(margin, float(depth.max()) * 0.9))
    pick = rng.integers(len(xs))
    return float(xs[pick]), float(ys[pick])


def _blob(rng: np.random.Generator, size: int, centre: tuple[float, float], radius: float, rough: float) -> Array:
    """Distance (S, S) in pixels to the border of an uneven ellipse, negative inside."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    x, y = x - centre[0], y - centre[1]
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.6)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = np.hypot(along / stretch, across * stretch**0.5)
    border: Array = (distance - radius * (1 + rough * value_noise(rng, size, (14, 14)))).astype(np.float32)
    return border


def _walk(rng: np.random.Generator, start: tuple[float, float], length: float, turn: float, step: float) -> Array:
    """Points (N, 2) of a line that wanders: `turn` is the spread of its change of direction at each step, radians."""
    count = max(2, int(length / step))
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, turn, count))
    steps = np.stack([np.cos(headings), np.sin(headings)], -1) * step
    points = np.cumsum(steps, 0)
    path: Array = (points - points[count // 2] + np.array(start)).astype(np.float32)
    return path


def _stroke(size: int, points: Array, width: float) -> Array:
    """Opacity (S, S) of a line of this width along the points."""
    canvas = np.zeros((size, size), np.uint8)
    # 4 fractional bits place the points between pixels.
    path = np.round(points * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [path], False, 255, max(1, round(width)), cv2.LINE_AA, 4)
    return (canvas / 255).astype(np.float32)


def _tone(rng: np.random.Generator, image: Array, centre: tuple[float, float]) -> Array:
    """A factor (1,) that makes the image clearly brighter or darker around a point, whichever it has room for."""
    here = float(image[round(centre[1]), round(centre[0])].mean())
    brighter = rng.random() < (0.85 if here < 0.4 else 0.15 if here > 0.65 else 0.5)
    return np.array([rng.uniform(1.5, 1.9) if brighter else rng.uniform(0.35, 0.6)], np.float32)


def scratch(rng: np.random.Generator, scene: Scene) -> Painted:
    """One to three nearly straight grooves side by side."""
    unit, size = _unit(scene), scene.image.shape[0]
    centre = _spot(rng, scene.region, 9 * unit)
    points = _walk(rng, centre, rng.uniform(35, 70) * unit, 0.05, 3 * unit)
    normal = np.array([points[0, 1] - points[-1, 1], points[-1, 0] - points[0, 0]])
    normal = normal / (np.linalg.norm(normal) + 1e-6)
    opacity = np.zeros((size, size), np.float32)
    for line in range(rng.integers(1, 4)):
        shifted = (points + normal * line * rng.uniform(5, 7) * unit).astype(np.float32)
        opacity = np.maximum(opacity, _stroke(size, shifted, rng.uniform(2, 3.4) * unit))
    return np.clip(scene.image * _tone(rng, scene.image, centre) + 0.03, 0, 1), opacity


def crack(rng: np.random.Generator, scene: Scene) -> Painted:
    """A jagged dark line with branches."""
    unit, size = _unit(scene), scene.image.shape[0]
    trunk = _walk(rng, _spot(rng, scene.region, 9 * unit), rng.uniform(45, 80) * unit, 0.45, 4 * unit)
    opacity = _stroke(size, trunk, rng.uniform(2.5, 3.6) * unit)
    for _ in range(rng.integers(1, 4)):
        start = trunk[rng.integers(len(trunk))]
        branch = _walk(rng, (float(start[0]), float(start[1])), rng.uniform(14, 30) * unit, 0.4, 4 * unit)
        opacity = np.maximum(opacity, _stroke(size, branch[len(branch) // 2 :], 2 * unit))
    return (scene.image * np.float32(rng.uniform(0.12, 0.3))).astype(np.float32), opacity


def hole(rng: np.random.Generator, scene: Scene) -> Painted:
    """A ragged opening through which the ground is seen, in the shade of its border."""
    unit, size = _unit(scene), scene.image.shape[0]
    radius = rng.uniform(6, 11) * unit
    distance = _blob(rng, size, _spot(rng, scene.region, radius), radius, 0.15)
    depth = np.clip(-distance / (4 * unit), 0, 1)
    return (scene.behind * (0.35 + 0.45 * depth)[..., None]).astype(np.float32), np.clip(0.5 - distance, 0, 1)


def stain(rng: np.random.Generator, scene: Scene) -> Painted:
    """A liquid that dried: it tints the surface, most at its border."""
    unit, size = _unit(scene), scene.image.shape[0]
    radius = rng.uniform(9, 17) * unit
    distance = _blob(rng, size, _spot(rng, scene.region, radius * 0.7), radius, 0.22)
    tint = colour(rng, saturation=(0.4, 0.9), value=(0.15, 0.7))
    strength = 0.45 + 0.3 * np.exp(-(((distance + 2 * unit) / (3 * unit)) ** 2))
    painted = scene.image * (1 - strength)[..., None] + tint * strength[..., None]
    return painted.astype(np.float32), np.clip(0.5 - distance / 1.5, 0, 1).astype(np.float32)


def contamination(rng: np.random.Generator, scene: Scene) -> Painted:
    """Something that doesn't belong: a curled fibre, or a few crumbs."""
    unit, size = _unit(scene), scene.image.shape[0]
    centre = _spot(rng, scene.region, 9 * unit)
    alien = colour(rng, saturation=(0.2, 1), value=(0.1, 1))
    if rng.random() < 0.5:
        points = _walk(rng, centre, rng.uniform(40, 75) * unit, 0.3, 3 * unit)
        opacity = _stroke(size, points, rng.uniform(2.2, 3.4) * unit)
    else:
        opacity = np.zeros((size, size), np.float32)
        for _ in range(rng.integers(4, 9)):
            place = (centre[0] + rng.normal(0, 9) * unit, centre[1] + rng.normal(0, 9) * unit)
            crumb = _blob(rng, size, place, rng.uniform(2, 4) * unit, 0.2)
            opacity = np.maximum(opacity, np.clip(0.5 - crumb, 0, 1))
    grain = 1 + 0.1 * value_noise(rng, size, (30, 30))
    return np.clip(alien * grain[..., None], 0, 1).astype(np.float32), opacity


def deformed(rng: np.random.Generator, scene: Scene) -> Painted:
    """A dent: the surface is twisted or pinched around a point and catches the light differently."""
    unit, size = _unit(scene), scene.image.shape[0]
    radius = rng.uniform(13, 20) * unit
    centre = _spot(rng, scene.region, radius * 0.6)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
    fade = np.clip(1 - np.hypot(x, y) / radius, 0, 1) ** 0.7
    twist, pinch = fade * rng.choice([-1, 1]) * rng.uniform(0.9, 1.6), 1 - fade * rng.uniform(-0.5, 0.5)
    from_x = (np.cos(twist) * x - np.sin(twist) * y) * pinch + centre[0]
    from_y = (np.sin(twist) * x + np.cos(twist) * y) * pinch + centre[1]
    sources = from_x.astype(np.float32), from_y.astype(np.float32)
    moved = cv2.remap(scene.image, *sources, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(angle) * x + np.sin(angle) * y) / radius * fade
    painted = moved * (1 + 1.5 * slope)[..., None]
    return np.clip(painted, 0, 1).astype(np.float32), (fade > 0.02).astype(np.float32)


def missing_part(rng: np.random.Generator, scene: Scene) -> Painted:
    """A piece is gone and the ground shows: bitten off an object's border, or cut out where there is none."""
    unit, size = _unit(scene), scene.image.shape[0]
    radius = rng.uniform(12, 20) * unit
    border = scene.region & ~cv2.erode(scene.region.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    border[[0, -1]] = border[:, [0, -1]] = False
    centre = _spot(rng, border if border.any() else scene.region, 0)
    distance = _blob(rng, size, centre, radius, 0.12)
    return scene.behind, np.clip(0.5 - distance, 0, 1)
