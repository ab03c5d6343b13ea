"""Flawless objects on a ground. Each function draws one, `(rng, size) -> Scene`, in a pose, size and colour of its own.

An object is drawn in its own coordinates (u, v), where its radius is about 1; `radius` and `distance` are in that unit.
"""

import numpy as np

from datamodules.demo.scene import (
    Array,
    Mask,
    Scene,
    blend,
    colour,
    fractal_noise,
    inside,
    plane,
    value_noise,
)


def _ground(rng: np.random.Generator, size: int) -> Array:
    """Something to lie on: one colour with a slope, clouds or stripes."""
    base = colour(rng, saturation=(0, 0.5), value=(0.1, 0.9))
    u, v = plane(rng, size)
    pattern = 0.15 * u + rng.choice([0.0, 0.08]) * fractal_noise(rng, size, 5)
    if rng.random() < 0.3:
        pattern = pattern + 0.07 * np.sin(v * rng.uniform(20, 45))
    ground: Array = np.clip(base * (1 + pattern)[..., None], 0, 1).astype(np.float32)
    return ground


def _pose(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    return plane(rng, size, scale=rng.uniform(0.62, 0.84), shift=0.1)


def _bevel(rng: np.random.Generator, distance: Array, width: float) -> Array:
    """Brightness (S, S) around 1 of a border of this width that is rounded off, lit from a random side."""
    down, across = np.gradient(distance)
    steep = np.hypot(down, across) + 1e-6
    angle = rng.uniform(0, 2 * np.pi)
    facing = (np.cos(angle) * across + np.sin(angle) * down) / steep
    near = np.clip(1 + distance / width, 0, 1) * (distance < 0)
    brightness: Array = (1 + 0.45 * facing * near).astype(np.float32)
    return brightness


def _scene(behind: Array, body: Array, distance: Array) -> Scene:
    """Body laid on its ground with a soft shadow around it."""
    shadow = behind * (1 - 0.3 * np.clip(1 - distance / 0.18, 0, 1))[..., None]
    region: Mask = distance < 0.02
    return Scene(blend(shadow, body, inside(distance, 0.02)), region, shadow.astype(np.float32))


def _metal(rng: np.random.Generator, size: int) -> Array:
    """Brushed metal (S, S, 3): steel, brass or copper."""
    hue = (200, 240) if rng.random() < 0.5 else (20, 50)
    base = colour(rng, hue, (0.05, 0.5), (0.5, 0.85))
    return base * (1 + 0.05 * value_noise(rng, size, (size // 2, 8)))[..., None]


def button(rng: np.random.Generator, size: int) -> Scene:
    """Disc with a raised rim and two or four holes."""
    u, v = _pose(rng, size)
    radius = np.hypot(u, v)
    distance = radius - 1
    spread, hole = rng.uniform(0.24, 0.32), rng.uniform(0.1, 0.14)
    angles = np.arange(4 if rng.random() < 0.5 else 2)
    for angle in angles * 2 * np.pi / len(angles):
        distance = np.maximum(distance, hole - np.hypot(u - spread * np.cos(angle), v - spread * np.sin(angle)))
    rim = rng.uniform(0.68, 0.8)
    shade = _bevel(rng, radius - 1, 0.15) * (2 - _bevel(rng, radius - np.float32(rim), 0.12))
    tone = 1 + 0.06 * fractal_noise(rng, size, 4)
    return _scene(_ground(rng, size), colour(rng, saturation=(0.1, 0.8)) * (shade * tone)[..., None], distance)


def gear(rng: np.random.Generator, size: int) -> Scene:
    """Toothed wheel of metal with an axle hole and a step in its face."""
    u, v = _pose(rng, size)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    teeth = np.clip(np.sin(angle * rng.integers(9, 15)) * 2, -1, 1)
    outline = radius - (0.92 + 0.1 * teeth)
    distance = np.maximum(outline, rng.uniform(0.18, 0.3) - radius).astype(np.float32)
    step = _bevel(rng, (radius - np.float32(rng.uniform(0.5, 0.68))).astype(np.float32), 0.1)
    return _scene(_ground(rng, size), _metal(rng, size) * (_bevel(rng, distance, 0.1) * step)[..., None], distance)


def capsule(rng: np.random.Generator, size: int) -> Scene:
    """Two-coloured pill with a glossy streak and a seam."""
    u, v = _pose(rng, size)
    half, thick = rng.uniform(0.45, 0.62), rng.uniform(0.4, 0.5)
    distance = (np.hypot(np.maximum(np.abs(u) - half, 0), v) - thick).astype(np.float32)
    first, second = colour(rng, saturation=(0.2, 0.9), value=(0.4, 0.95)), colour(rng, value=(0.4, 0.95))
    body = blend(first, second, inside(u - np.float32(rng.uniform(-0.15, 0.15)), 0.02))
    shade = 1.08 - 0.6 * np.clip(np.abs(v) / thick, 0, 1) ** 3
    body = blend(body * shade[..., None], np.ones(3, np.float32), 0.6 * np.exp(-(((v / thick - 0.45) / 0.12) ** 2)))
    return _scene(_ground(rng, size), body, distance)


def coin(rng: np.random.Generator, size: int) -> Scene:
    """Struck metal: a rim, a ring of beads and a star or polygon in relief."""
    u, v = _pose(rng, size)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    distance = (radius - 1).astype(np.float32)
    points, depth = rng.integers(3, 8), rng.choice([0.08, 0.2])
    symbol = (radius - (0.45 + depth * np.cos(points * angle))).astype(np.float32)
    bead = np.hypot(radius - 0.74, (np.abs((angle * 14 / np.pi) % 2 - 1) - 0.5) * 0.16) - 0.045
    shade = _bevel(rng, distance, 0.1) * _bevel(rng, symbol, 0.1) * (2 - _bevel(rng, distance + np.float32(0.13), 0.05))
    shade = shade * (1 - 0.25 * inside(bead.astype(np.float32), 0.02)) * (1 + 0.12 * inside(symbol))
    return _scene(_ground(rng, size), _metal(rng, size) * shade[..., None], distance)


def cookie(rng: np.random.Generator, size: int) -> Scene:
    """Baked dough, uneven at its border, with dark chips."""
    u, v = _pose(rng, size)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    wobble = sum(rng.uniform(0.005, 0.025) * np.sin(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5, 7))
    distance = (radius - 0.95 - wobble).astype(np.float32)
    dough = colour(rng, (25, 42), (0.35, 0.65), (0.6, 0.9)) * (1 + 0.1 * fractal_noise(rng, size, 10))[..., None]
    body = dough * (1 - 0.35 * np.clip(1 + distance / 0.3, 0, 1) ** 2)[..., None]
    chip = colour(rng, (10, 30), (0.4, 0.7), (0.15, 0.35))
    for _ in range(rng.integers(5, 10)):
        far, way = 0.75 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        distance_to_chip = np.hypot(u - far * np.cos(way), (v - far * np.sin(way)) * rng.uniform(0.8, 1.25))
        blob = distance_to_chip - rng.uniform(0.07, 0.11)
        body = blend(body, chip * (1 + 0.5 * np.clip(-blob / 0.1, 0, 1))[..., None], inside(blob, 0.02))
    return _scene(_ground(rng, size), body.astype(np.float32), distance)


def nut(rng: np.random.Generator, size: int) -> Scene:
    """Six-sided metal nut with a chamfer and a threaded hole."""
    u, v = _pose(rng, size)
    radius = np.hypot(u, v).astype(np.float32)
    turns = np.arange(3) * np.pi / 3
    flat = np.max([np.abs(u * np.cos(turn) + v * np.sin(turn)) for turn in turns], axis=0) - 0.85
    bore = np.float32(rng.uniform(0.36, 0.48))
    distance = np.maximum(flat, bore - 0.1 - radius).astype(np.float32)
    thread = 1 - 0.5 * inside(radius - bore) * (0.6 + 0.4 * np.sin(radius * 150))
    shade = _bevel(rng, flat.astype(np.float32), 0.08) * (2 - _bevel(rng, radius - np.float32(0.84), 0.06)) * thread
    return _scene(_ground(rng, size), _metal(rng, size) * shade[..., None], distance)
