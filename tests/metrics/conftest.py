"""A slow, independent evaluation to compare with: plain loops over all distinct thresholds."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest


def label_regions(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """8-connected components by flood fill."""
    todo = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    regions = []
    while todo:
        stack, region = [todo.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in todo:
                    todo.remove(near)
                    stack.append(near)
        regions.append(region)
    return regions


def slow_aupro(maps: list[np.ndarray], masks: list[np.ndarray], max_fpr: float = 0.3) -> float:
    """PRO and FPR at every distinct score of the category, then trapezoids, the last one cut at max_fpr."""
    normal = np.concatenate([m[g == 0] for m, g in zip(maps, masks, strict=True)])
    regions = [
        np.array([m[pixel] for pixel in region])
        for m, g in zip(maps, masks, strict=True)
        for region in label_regions(g)
    ]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(np.concatenate([m.ravel() for m in maps]).tolist()), reverse=True):
        pro = sum(float((region >= threshold).mean()) for region in regions) / len(regions)
        points.append((float((normal >= threshold).mean()), pro))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > max_fpr:
            area += (max_fpr - x0) * (y0 + y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / max_fpr


@pytest.fixture(scope="session")
def brute_force_aupro() -> Callable[..., float]:
    return slow_aupro
