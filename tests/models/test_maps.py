"""Maps against scipy, torch's own resizing and numbers known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from src.models.maps import gaussian_blur, resize_like, to_grid


def random_maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1, 1.3, 2, 4.6, 8])
@pytest.mark.parametrize("size", [(40, 40), (23, 57)])
def test_blur_is_scipys(size: tuple[int, int], sigma: float) -> None:
    maps = random_maps(3, *size)
    expected = np.stack([gaussian_filter(one, sigma) for one in maps.double().numpy()])
    blurred = gaussian_blur(maps, sigma)
    assert blurred.dtype == torch.float32
    np.testing.assert_allclose(blurred.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 70)])
@pytest.mark.parametrize("sigma", [2.5, 8, 20])
def test_blur_is_scipys_where_the_radius_exceeds_the_map(size: tuple[int, int], sigma: float) -> None:
    maps = random_maps(2, *size, dtype=torch.float64)
    expected = np.stack([gaussian_filter(one, sigma) for one in maps.numpy()])
    np.testing.assert_allclose(gaussian_blur(maps, sigma).numpy(), expected, rtol=0, atol=1e-12)


def test_blur_with_sigma_0_changes_nothing() -> None:
    maps = random_maps(2, 7, 9)
    assert torch.equal(gaussian_blur(maps, 0), maps)


def test_blur_of_a_map_does_not_depend_on_its_batch() -> None:
    maps = random_maps(5, 31, 17)
    alone = torch.cat([gaussian_blur(one[None], 3) for one in maps])
    torch.testing.assert_close(gaussian_blur(maps, 3), alone, rtol=0, atol=1e-6)


def test_blur_keeps_a_constant() -> None:
    torch.testing.assert_close(gaussian_blur(torch.full((1, 12, 15), 0.7), 5), torch.full((1, 12, 15), 0.7))


def test_grid_has_row_order() -> None:
    values = torch.tensor([[[0, 10], [1, 11], [2, 12], [3, 13]]])  # (1, 4 patches, 2 channels)
    assert to_grid(values).tolist() == [[[[0, 1], [2, 3]], [[10, 11], [12, 13]]]]


def test_grid_keeps_images_apart() -> None:
    values = random_maps(3, 25, 4)
    grid = to_grid(values)
    assert grid.shape == (3, 4, 5, 5)
    for image, channel, row, column in [(0, 0, 0, 1), (1, 3, 4, 0), (2, 2, 3, 4)]:
        assert grid[image, channel, row, column] == values[image, 5 * row + column, channel]


def test_resize_is_bilinear_without_aligned_corners() -> None:
    doubled = resize_like(torch.tensor([[[0.0, 1.0]]]), torch.zeros(1, 1, 4))
    assert isinstance(doubled, torch.Tensor)
    torch.testing.assert_close(doubled, torch.tensor([[[0, 0.25, 0.75, 1]]]))


def test_resize_to_a_batch_of_masks_is_torchs() -> None:
    maps = random_maps(2, 6, 8)
    resized = resize_like(maps, torch.zeros(2, 13, 5))
    expected = F.interpolate(maps[:, None], size=(13, 5), mode="bilinear", align_corners=False)[:, 0]
    assert isinstance(resized, torch.Tensor)
    assert torch.equal(resized, expected)


def test_resize_gives_each_mask_of_a_list_its_own_size() -> None:
    maps, sizes = random_maps(3, 6, 6), [(12, 9), (6, 6), (4, 30)]
    resized = resize_like(maps, [torch.zeros(size) for size in sizes])
    assert isinstance(resized, list)
    assert [tuple(one.shape) for one in resized] == sizes
    for one, own, size in zip(maps, resized, sizes, strict=True):
        expected = F.interpolate(one[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(own, expected)


def test_resize_to_the_same_size_is_exact() -> None:
    maps = random_maps(2, 5, 7)
    resized = resize_like(maps, torch.zeros(2, 5, 7))
    assert isinstance(resized, torch.Tensor)
    assert torch.equal(resized, maps)
