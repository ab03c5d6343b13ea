"""The histogram variant against the exact one: the bounds hold, and taking over in the middle changes nothing."""

import numpy as np
import pytest
import torch

from src.metrics import AUPRO, BenchmarkMetrics, PixelMetrics
from src.metrics.functional import (
    aupro_error,
    auroc_error,
    average_precision_error,
    count_anomalous,
    count_normal,
    empty_histogram,
    exact_curve,
    f1_max_error,
    histogram_curve,
)
from src.metrics.functional.bits import from_ordered_bits, to_ordered_bits

METRICS = ("pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO")


def draw(seed: int, scale: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(6, 40, 40, dtype=torch.uint8)
    for i in range(4):
        masks[i, 5 + 3 * i : 15 + 3 * i, 4:9] = 1
        masks[i, 30:32, 20 : 24 + 2 * i] = 1
    maps = torch.randn(masks.shape, generator=generator) + (0.4 + 0.3 * (seed % 4)) * masks
    return maps * scale + shift, masks


def evaluate(
    maps: torch.Tensor, masks: torch.Tensor, max_pixels: int | None = None, batch: int = 6
) -> dict[str, float]:
    metric = PixelMetrics(max_pixels)
    for start in range(0, len(maps), batch):
        metric.update(maps[start : start + batch], masks[start : start + batch])
    return metric.compute()


def test_bits_keep_order_and_ties_and_can_be_undone():
    edges = [-3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1e-30, 0.5, 1.0, float(np.nextafter(np.float32(1), 2)), 3e38]
    scores = np.array(edges, np.float32)
    bits = to_ordered_bits(scores)
    assert bits.dtype == np.uint32
    assert (np.sign(np.diff(bits.astype(np.int64))) == np.sign(np.diff(scores))).all()
    assert bits[3] == bits[4]  # -0.0 and 0.0
    assert (from_ordered_bits(bits) == scores).all()
    assert scores[3] == 0  # the input is left alone
    assert np.signbit(scores[3])


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-4, 0.0), (1.0, 5.0), (0.01, 1.0), (0.001, 4.0)])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_within_its_bound(seed, scale, shift):
    maps, masks = draw(seed, scale, shift)
    exact, result = evaluate(maps, masks), evaluate(maps, masks, max_pixels=0)
    assert result.keys() == {*exact, *(f"{name}_error" for name in METRICS)}
    for name in METRICS:
        assert abs(result[name] - exact[name]) <= result[f"{name}_error"] + 1e-9
    if (scale, shift) == (1.0, 0.0):
        assert all(result[f"{name}_error"] < 0.01 for name in METRICS)


@pytest.mark.parametrize("order", ["best", "worst"])
def test_bounds_are_reached_by_the_extreme_orders(order):
    # All scores in one bin: nothing is known but the counts. 2048 bins an octave, so these 12 share one.
    step = 2.0**-20
    low, high = 1 + step * torch.arange(8.0), 1 + step * torch.arange(100.0, 104.0)
    normal, anomalous = (low, high[:1].expand(4)) if order == "best" else (low + 16 * step, torch.ones(4) + step)
    areas = torch.full((4,), 4, dtype=torch.int32)
    histogram = empty_histogram()
    count_anomalous(histogram, anomalous, areas)
    count_normal(histogram, normal)
    curve, exact = histogram_curve(histogram), exact_curve(anomalous, normal, areas)
    assert len(curve.thresholds) == 1
    assert auroc_error(curve) == 0.5
    assert aupro_error(curve) == pytest.approx(1 - 0.15)  # drawn 0.15: 1 at best, 0 at worst
    assert f1_max_error(curve) == pytest.approx(1 - 2 * 4 / (12 + 4))
    # AP: 4 / 12; at best 1; at worst, the normal ones above and the four apart, (1/9 + 2/10 + 3/11 + 4/12) / 4.
    assert average_precision_error(curve) == pytest.approx(1 - 4 / 12)
    assert exact.num_anomalous == 4


def test_crowded_scores_are_reported_and_warned_of():
    # Between 1 and 1.001 there are two bins.
    maps, masks = draw(1)
    maps = 1 + 0.001 * (maps - maps.min()) / (maps.max() - maps.min())
    metrics = BenchmarkMetrics(["bottle"], ["a"], "single", memory_gb=0)
    with pytest.warns(UserWarning, match="bottle: its maps exceed the memory for exact pixel metrics"):
        metrics.update(["bottle"] * 6, {"a": torch.rand(6)}, torch.rand(6), None, maps, masks)
    with pytest.warns(UserWarning, match=r"bottle: the histogram is too coarse for its scores \(pixel_AUROC_error 0\."):
        result = metrics.compute()["categories"]["bottle"]
    exact = evaluate(maps, masks)
    assert result["pixel_AUROC_error"] > 0.05
    assert abs(result["pixel_AUROC"] - exact["pixel_AUROC"]) > 1e-3  # it is wrong, and says so
    for name in METRICS:
        assert abs(result[name] - exact[name]) <= result[f"{name}_error"]


@pytest.mark.parametrize("max_pixels", [0, 1599, 1600, 6000, 9599])
def test_taking_over_in_the_middle_is_a_histogram_from_the_start(max_pixels):
    maps, masks = draw(2)
    assert evaluate(maps, masks, max_pixels, batch=1) == evaluate(maps, masks, 0)


def test_up_to_the_limit_the_metrics_are_exact():
    maps, masks = draw(2)
    metric = PixelMetrics(max_pixels=maps.numel())
    metric.update(maps, masks)
    assert metric.is_exact
    assert metric.compute() == evaluate(maps, masks)
    metric.update(maps[:1], masks[:1])
    assert not metric.is_exact
    metric.reset()
    assert metric.is_exact


@pytest.mark.filterwarnings("error")
def test_exact_results_say_nothing_of_errors_and_warn_of_nothing():
    maps, masks = draw(2)
    metrics = BenchmarkMetrics(["bottle"], ["a"], "single", memory_gb=12 * maps.numel() / 1e9)
    metrics.update(["bottle"] * 6, {"a": torch.rand(6)}, torch.rand(6), None, maps, masks)
    result = metrics.compute()
    assert not [key for key in result["categories"]["bottle"] if key.endswith("_error")]
    assert "pixel_AUROC_error" not in result["mean"]


@pytest.mark.parametrize("batch", [1, 4])
def test_batches_and_order_change_nothing_to_the_last_bit(batch):
    maps, masks = draw(3)
    order = [4, 2, 0, 5, 1, 3]
    for max_pixels in (None, 0):
        whole = evaluate(maps, masks, max_pixels)
        assert evaluate(maps[order], masks[order], max_pixels, batch) == whole


def test_float64_maps_and_native_sizes():
    maps, masks = draw(0)
    metric = PixelMetrics(max_pixels=0)
    metric.update([m.double() for m in maps], list(masks))
    assert metric.compute() == evaluate(maps, masks, 0)
    exact = PixelMetrics()
    exact.update(maps.double(), masks)
    assert exact.compute() == pytest.approx(evaluate(maps, masks), abs=1e-12)


def test_a_missing_class_and_forward():
    maps, masks = draw(0)
    assert evaluate(maps, masks * 0, 0) == evaluate(maps, masks * 0 + 1, 0) == {}
    metric = PixelMetrics(max_pixels=0)
    for i in range(6):
        metric(maps[i : i + 1], masks[i : i + 1])  # torchmetrics' forward: adds, and computes the batch alone
    assert metric.compute() == evaluate(maps, masks, 0)
    single = AUPRO()
    single.update(maps, masks)
    assert single.compute().item() == evaluate(maps, masks)["pixel_AUPRO"]
