"""AUPRO against brute force and by hand; component areas; PixelMetrics."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from src.metrics import AUPRO, PixelMetrics
from src.metrics.functional import aupro, component_areas, exact_curve

KEYS = {"pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_F1Max_threshold", "pixel_AUPRO"}


def draw(seed: int, levels: int | None, size: int = 16, num: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps, and masks of scattered specks and blocks; the first image has none."""
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(num, size, size, generator=generator) < 0.04).long()
    masks[-1, 3:9, 5:11] = 1
    masks[0] = 0
    maps = torch.randn(num, size, size, generator=generator) + (0.3 + 0.4 * (seed % 4)) * masks
    return (maps if levels is None else (maps * levels / 4).round() / levels), masks


def evaluate(maps, masks) -> dict[str, float]:
    metric = PixelMetrics()
    metric.update(maps, masks)
    return metric.compute()


def as_map(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([rows])


@pytest.mark.parametrize("levels", [None, 2, 4, 50])
@pytest.mark.parametrize("seed", range(6))
def test_aupro_agrees_with_brute_force(brute_force_aupro, seed, levels):
    maps, masks = draw(seed, levels)
    expected = brute_force_aupro(list(maps.numpy()), list(masks.numpy()))
    assert evaluate(maps, masks)["pixel_AUPRO"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("max_fpr", [0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("levels", [None, 5])
def test_aupro_at_other_limits(brute_force_aupro, max_fpr, levels):
    maps, masks = draw(3, levels)
    metric = AUPRO(max_fpr=max_fpr)
    metric.update(maps, masks)
    expected = brute_force_aupro(list(maps.numpy()), list(masks.numpy()), max_fpr)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-9)


def test_aupro_of_one_jump_over_the_limit():
    # The highest score is shared by half the region and half of the normal pixels: (0, 0) -> (0.5, 0.5), diagonally.
    assert evaluate(as_map([0.9, 0.1, 0.9, 0.1]), as_map([1, 1, 0, 0]))["pixel_AUPRO"] == pytest.approx(0.15)


def test_aupro_with_ties_by_hand():
    # 10 normal pixels: 1 above the region; 4 tie with it. PRO 0 up to 0.1, then slope 1 / 0.4 to (0.5, 1).
    maps = as_map([3.0] + [2.0] * 4 + [1.0] * 5 + [2.0])
    masks = as_map([0] * 10 + [1])
    assert evaluate(maps, masks)["pixel_AUPRO"] == pytest.approx(0.2 * 0.5 / 2 / 0.3)


def test_regions_weigh_the_same_whatever_their_area():
    # A region of 1 pixel lies above all normal pixels and one of 4 below: PRO 1/2 all the way, where recall is 1/5.
    maps, masks = as_map([9.0, 5.0, 0.0, 0.0, 0.0, 0.0, 5.0]), as_map([1, 0, 1, 1, 1, 1, 0])
    assert evaluate(maps, masks)["pixel_AUPRO"] == pytest.approx(0.5)


def test_pixels_that_touch_at_a_corner_are_one_region():
    mask = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]])
    areas, num_components = component_areas(mask)
    assert num_components == 2
    assert areas.tolist() == [2] * 4
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    areas, num_components = component_areas(mask)
    assert num_components == 2
    assert areas.tolist() == [4] * 4 + [1]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_component_areas_dtypes_and_total(dtype):
    mask = draw(5, None)[1][1].to(dtype)
    areas, num_components = component_areas(mask)
    assert areas.shape == (int(mask.sum()),)
    assert areas.dtype == torch.int32
    assert float((1 / areas.double()).sum()) == pytest.approx(num_components, abs=1e-12)


def test_images_of_a_batch_are_labelled_apart():
    # Stacked as a volume the two would touch; the empty one between them belongs to neither.
    masks = torch.zeros(3, 3, 3)
    masks[0, 1, :2] = masks[2, 1, 1] = 1
    areas, num_components = component_areas(masks)
    assert (areas.tolist(), num_components) == ([2, 2, 1], 2)
    assert component_areas(masks[[0, 2]]).areas.tolist() == [2, 2, 1]


def test_a_mask_without_anomalies_has_no_areas():
    assert component_areas(torch.zeros(3, 4)).areas.shape == (0,)
    assert component_areas(torch.zeros(3, 4)).num_components == 0


def test_the_same_pixels_as_scikit_learn():
    maps, masks = draw(7, levels=30)
    result, y, s = evaluate(maps, masks), masks.flatten().numpy(), maps.flatten().numpy()
    assert result.keys() == KEYS
    assert all(type(value) is float for value in result.values())
    assert result["pixel_AUROC"] == pytest.approx(roc_auc_score(y, s), abs=1e-9)
    assert result["pixel_AP"] == pytest.approx(average_precision_score(y, s), abs=1e-9)


def test_normal_pixels_of_normal_images_count():
    maps, masks = draw(2, None)
    noisy = torch.cat((maps, torch.full_like(maps[:1], 99.0)))
    assert evaluate(noisy, torch.cat((masks, masks[:1])))["pixel_AUPRO"] < evaluate(maps, masks)["pixel_AUPRO"] - 0.05


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_give_what_one_update_gives(batch):
    maps, masks = draw(4, levels=30, num=7)
    metric = PixelMetrics()
    for start in range(0, 7, batch):
        metric.update(maps[start : start + batch], masks[start : start + batch])
    assert metric.compute() == evaluate(maps, masks)


def test_order_of_images_does_not_matter():
    maps, masks = draw(4, levels=30, num=7)
    order = [3, 6, 0, 5, 1, 4, 2]
    assert evaluate(maps[order], masks[order]) == pytest.approx(evaluate(maps, masks), abs=1e-12)


@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (2.0**-13, 3.0), (1000.0, -5.0)])
def test_only_the_ranking_counts(scale, shift):
    maps, masks = draw(1, levels=40)
    moved = maps * scale + shift
    assert moved.unique().numel() == maps.unique().numel()
    before, after = evaluate(maps, masks), evaluate(moved, masks)
    del before["pixel_F1Max_threshold"], after["pixel_F1Max_threshold"]
    assert after == pytest.approx(before, abs=1e-12)


def test_maps_of_native_sizes(brute_force_aupro):
    maps, masks = draw(6, levels=None)
    sizes = [(16, 16), (7, 16), (16, 11), (13, 14)]
    maps = [m[:h, :w] for m, (h, w) in zip(maps, sizes, strict=True)]
    masks = [m[:h, :w] for m, (h, w) in zip(masks, sizes, strict=True)]
    expected = brute_force_aupro([m.numpy() for m in maps], [m.numpy() for m in masks])
    assert evaluate(maps, masks)["pixel_AUPRO"] == pytest.approx(expected, abs=1e-9)


def test_a_missing_class_makes_all_absent():
    maps = torch.rand(2, 5, 5)
    assert evaluate(maps, torch.zeros(2, 5, 5)) == {}
    assert evaluate(maps, torch.ones(2, 5, 5)) == {}
    metric = AUPRO()
    metric.update(maps, torch.zeros(2, 5, 5))
    assert metric.compute().isnan()
    assert aupro(exact_curve(torch.rand(0), torch.rand(3), torch.rand(0))) is None


def test_equal_scores():
    # One jump, (0, 0) -> (1, 1).
    result = evaluate(torch.full((2, 6, 6), 0.5), draw(0, None, size=6, num=2)[1])
    assert result["pixel_AUROC"] == 0.5
    assert result["pixel_AUPRO"] == pytest.approx(0.15)
    assert result["pixel_F1Max_threshold"] == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_a_perfect_map_is_exactly_one(seed):
    masks = draw(seed, None)[1]
    result = evaluate(masks + torch.rand(masks.shape) * 0.5, masks)
    assert [result[key] for key in ("pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO")] == [1.0] * 4


def test_half_precision_and_states_do_not_alias_the_input():
    maps, masks = draw(3, levels=16)
    metric = PixelMetrics()
    metric.update(maps.half(), masks)
    assert metric.compute() == pytest.approx(evaluate(maps.half().float(), masks))
    metric, reused = PixelMetrics(), maps.clone()
    metric.update(reused, masks)
    reused.zero_()
    assert metric.compute() == evaluate(maps, masks)


def test_bad_input_is_refused():
    maps, masks = draw(0, None)
    metric = PixelMetrics()
    with pytest.raises(ValueError, match="Expected argument `anomaly_map` to be finite"):
        metric.update(torch.where(masks == 1, torch.nan, maps), masks)
    with pytest.raises(ValueError, match="Expected argument `mask` to hold only 0 and 1"):
        metric.update(maps, masks * 255)
    with pytest.raises(
        ValueError, match=r"`mask` to have the shape of `anomaly_map`, \(4, 16, 16\), but got \(4, 16, 15\)"
    ):
        metric.update(maps, masks[:, :, :-1])
    with pytest.raises(ValueError, match="one mask per map, 4, but got 3"):
        metric.update(maps, masks[1:])
    with pytest.raises(ValueError, match=r"`mask` to have 3 dimension\(s\), but got shape \(4, 1, 16, 16\)"):
        metric.update(maps[:, None], masks[:, None])
    with pytest.raises(ValueError, match=r"`anomaly_map` to be a floating point tensor, but got torch\.int64"):
        metric.update(masks, masks)
    assert metric.anomalous_scores == []


def test_aupro_needs_areas_and_a_sensible_limit():
    with pytest.raises(ValueError, match="`curve` to be made with `areas`"):
        aupro(exact_curve(torch.rand(3), torch.rand(3)))
    for limit in (0.0, 1.5, -0.3):
        with pytest.raises(ValueError, match=r"`max_fpr` to be in \(0, 1\], but got"):
            aupro(exact_curve(torch.rand(3), torch.rand(3), torch.ones(3)), limit)


@pytest.mark.slow
def test_agrees_at_the_size_of_a_category():
    generator = np.random.default_rng(0)
    masks = torch.zeros(24, 240, 240, dtype=torch.long)
    for mask in masks[:12]:
        y, x = generator.integers(0, 190, 2)
        mask[y : y + 50, x : x + 30] = 1
    maps = torch.from_numpy(generator.normal(size=masks.shape)).float() + masks
    result, y, s = evaluate(maps, masks), masks.flatten().numpy(), maps.flatten().numpy()
    assert result["pixel_AUROC"] == pytest.approx(roc_auc_score(y, s), abs=1e-9)
    assert result["pixel_AP"] == pytest.approx(average_precision_score(y, s), abs=1e-9)
