"""What a camera adds to a drawing: uneven light, a colour cast, noise."""

import numpy as np
from numpy.typing import NDArray

from datamodules.demo.scene import Array, plane, value_noise


def shoot(rng: np.random.Generator, drawing: Array) -> NDArray[np.uint8]:
    """Turn a drawing (S, S, 3) in [0, 1] into a photograph, uint8 RGB.

    Pixels are treated one by one and no random number depends on the drawing: with the same rng state, two drawings
    that agree at a pixel give photographs that agree there. Masks therefore stay exact.
    """
    size = drawing.shape[0]
    u, _ = plane(rng, size)
    light = 1 + rng.uniform(0, 0.3) * u + rng.uniform(0, 0.08) * value_noise(rng, size, (2, 2))
    exposure = rng.uniform(0.75, 1.05) * rng.uniform(0.94, 1.06, 3)
    noise = rng.standard_normal(drawing.shape, dtype=np.float32) * rng.uniform(0.006, 0.03)
    seen = np.clip(drawing, 0, 1) * light[..., None] * exposure
    # Highlights are compressed instead of clipped: a defect in a bright spot stays visible.
    seen = np.where(seen > 0.8, 0.8 + 0.2 * np.tanh((seen - 0.8) / 0.2), seen) + noise
    photograph: NDArray[np.uint8] = np.clip(np.round(seen * 255), 0, 255).astype(np.uint8)
    return photograph
