"""Flawless surfaces that fill the image. Each function draws one, `(rng, size) -> Scene`; cell sizes are in pixels."""

import cv2
import numpy as np

from datamodules.demo.scene import (
    Array,
    Scene,
    blend,
    cell_noise,
    colour,
    fractal_noise,
    inside,
    plane,
    value_noise,
)


def _surface(rng: np.random.Generator, image: Array) -> Scene:
    """A scene whose object is the whole image, above a ground of one colour."""
    size = image.shape[0]
    ground = colour(rng, value=(0.05, 0.95))
    behind = np.broadcast_to(ground, image.shape) + 0.04 * fractal_noise(rng, size, 6)[..., None]
    return Scene(image.astype(np.float32), np.ones((size, size), bool), behind.astype(np.float32))


def fabric(rng: np.random.Generator, size: int) -> Scene:
    """Plain weave: threads of two colours that go over and under each other."""
    u, v = plane(rng, size)
    threads = rng.uniform(8, 13)
    u = u * threads + 0.12 * value_noise(rng, size, (5, 5))
    v = v * threads + 0.12 * value_noise(rng, size, (5, 5))
    over = (np.floor(u) + np.floor(v)) % 2 == 0
    profile = np.where(over, np.abs(np.sin(np.pi * u)), np.abs(np.sin(np.pi * v)))
    length = np.where(over, np.abs(np.sin(np.pi * v)), np.abs(np.sin(np.pi * u)))
    warp = colour(rng)
    weft = np.clip(warp * rng.uniform(0.65, 1.4) + rng.uniform(-0.08, 0.08, 3), 0.05, 1)
    image: Array = np.where(over[..., None], warp, weft) * (0.45 + 0.4 * profile + 0.2 * length)[..., None]
    return _surface(rng, image * (1 + 0.06 * fractal_noise(rng, size, 4))[..., None])


def wood(rng: np.random.Generator, size: int) -> Scene:
    """Planed board: wavy growth rings along one direction, with fibres."""
    wide = int(size * 1.5)
    across = (np.arange(wide, dtype=np.float32) / wide)[:, None]
    bend = value_noise(rng, wide, (4, 2)) * 0.07 + value_noise(rng, wide, (12, 3)) * 0.012
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(6, 13) * (across + bend))
    fibres = value_noise(rng, wide, (wide // 2, 6))
    light = colour(rng, (18, 45), (0.3, 0.6), (0.6, 0.95))
    dark = light * rng.uniform(0.28, 0.5) * np.array([1, 0.9, 0.8], np.float32)
    flat = blend(light, dark, rings**2 * 0.9) * (1 + 0.08 * fibres)[..., None]
    turn: Array = np.asarray(cv2.getRotationMatrix2D((wide / 2, wide / 2), rng.uniform(0, 360), 1.0), np.float64)
    turn[:, 2] += (size - wide) / 2
    turned: Array = np.asarray(cv2.warpAffine(flat.astype(np.float32), turn, (size, size)), np.float32)
    return _surface(rng, turned)


def tile(rng: np.random.Generator, size: int) -> Scene:
    """Speckled stone tiles, each of its own shade, with joints between them."""
    u, v = plane(rng, size, scale=rng.uniform(0.45, 0.8), shift=0.5)
    v = v * rng.choice([1.0, 1.6])
    shift = 0.5 * (np.floor(v) % 2) if rng.random() < 0.5 else 0.0
    u = (u + shift).astype(np.float32)
    shades = rng.uniform(0.6, 1.3, (32, 32)).astype(np.float32)
    shade = shades[np.floor(v).astype(int) % 32, np.floor(u).astype(int) % 32]
    stone, speckle, joint = colour(rng), colour(rng, value=(0.1, 0.95)), colour(rng, (0, 360), (0, 0.2), (0.15, 0.9))
    image = blend(stone * shade[..., None], speckle, (value_noise(rng, size, (40, 40)) > rng.uniform(0.5, 1.2)) * 0.75)
    gap = np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v)))
    return _surface(rng, blend(image, joint, inside(gap - rng.uniform(0.025, 0.045), 0.015)))


def grid(rng: np.random.Generator, size: int) -> Scene:
    """Welded mesh: round wires in two directions in front of a ground."""
    u, v = plane(rng, size, scale=rng.uniform(0.2, 0.32), shift=0.3)
    v = v + rng.choice([0.0, 0.35]) * u
    wire, ground = colour(rng, saturation=(0, 0.35)), colour(rng, saturation=(0, 0.4), value=(0.05, 0.9))
    if np.abs(wire - ground).max() < 0.3:
        wire = np.float32(1) - wire
    width = rng.uniform(0.13, 0.2)
    image = np.broadcast_to(ground, (size, size, 3)) * (1 + 0.06 * fractal_noise(rng, size, 5))[..., None]
    behind = image.astype(np.float32)
    for across in (u, v):
        gap = np.abs(across - np.round(across)).astype(np.float32)
        round_shade = 1.1 - 0.55 * np.clip(gap / width, 0, 1) ** 2
        image = blend(image.astype(np.float32), wire * round_shade[..., None], inside(gap - np.float32(width), 0.04))
    return Scene(image.astype(np.float32), np.ones((size, size), bool), behind)


def leather(rng: np.random.Generator, size: int) -> Scene:
    """Grained hide: small pads between creases, over slow changes of tone."""
    cells = rng.uniform(7, 11)
    u, v = plane(rng, size)
    bend = 0.35 * value_noise(rng, size, (8, 8))
    border, value = cell_noise(rng, (u * cells + bend).astype(np.float32), (v * cells - bend).astype(np.float32))
    pad = np.clip(border / 0.35, 0, 1)
    tone = 1 + 0.12 * fractal_noise(rng, size, 2) + 0.12 * (value - 0.5)
    hide = colour(rng, saturation=(0.2, 0.7), value=(0.3, 0.8))
    return _surface(rng, hide * (tone * (0.6 + 0.4 * pad))[..., None])


def marble(rng: np.random.Generator, size: int) -> Scene:
    """Polished stone: clouds, and veins that wander and branch."""
    cloud = fractal_noise(rng, size, 3, 4)
    vein = np.abs(fractal_noise(rng, size, 3, 4)) + 0.12 * np.abs(value_noise(rng, size, (4, 4)))
    stone = colour(rng, saturation=(0.05, 0.35), value=(0.4, 0.9))
    deep = np.clip(stone * rng.uniform(0.2, 0.5) + rng.uniform(-0.05, 0.05, 3), 0, 1)
    pale = np.clip(stone * rng.uniform(1.1, 1.3), 0, 1)
    image = blend(blend(stone, deep, 0.45 + 0.45 * cloud), pale, np.clip(1 - vein / 0.3, 0, 1))
    return _surface(rng, image)
