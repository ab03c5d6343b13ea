"""A histogram's thresholds and bounds: against the bits of its bins, against extreme orders and against all orders.

A bin holds the float32 that share their leading 20 bits, so 4096 places. What a bin holds is known, its order is not:
the tests choose the order, and scikit-learn or loops over all thresholds say what is true then.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from src.metrics import PixelMetrics
from src.metrics.functional import (
    Curve,
    aupro,
    aupro_error,
    auroc,
    auroc_error,
    average_precision,
    average_precision_error,
    count_anomalous,
    count_normal,
    empty_histogram,
    exact_curve,
    f1_max,
    f1_max_error,
    histogram_curve,
)

PLACES = 1 << 12
ROUNDING = 1e-6  # of the weights 1 / area
ALWAYS_THE_SAME = settings(deadline=None, derandomize=True, max_examples=25)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
crowded = st.builds(lambda middle, step: middle + step / 2**14, st.sampled_from([1.0, -1.0, 0.0]), st.integers(-40, 40))


def edges_of(score: float) -> tuple[float, float]:
    """The lowest and the highest float32 of a score's bin. More bits set is further from 0, so lower where negative."""
    (bits,) = struct.unpack("<I", struct.pack("<f", score + 0.0))  # adding 0 makes -0.0 what it equals
    nearest, furthest = bits // PLACES * PLACES, bits // PLACES * PLACES + PLACES - 1
    if score < 0:
        nearest = max(nearest, 0x8000_0001)  # -0.0 is 0.0 and in the bin of it
    near, far = (struct.unpack("<f", struct.pack("<I", pattern))[0] for pattern in (nearest, furthest))
    return (far, near) if score < 0 else (near, far)


def curve_of(anomalous: Sequence[float], normal: Sequence[float], areas: Sequence[int] | None = None) -> Curve:
    histogram = empty_histogram()
    areas = [1] * len(anomalous) if areas is None else areas
    count_anomalous(histogram, torch.tensor(anomalous).float(), torch.tensor(areas, dtype=torch.int32))
    count_normal(histogram, torch.tensor(normal).float())
    return histogram_curve(histogram)


def f1_at(threshold: float, anomalous: Sequence[float], normal: Sequence[float]) -> float:
    found = sum(score >= threshold for score in anomalous)
    return 2 * found / (found + sum(score >= threshold for score in normal) + len(anomalous))


EDGE_CASES = [0.0, -0.0, 1e-45, -1e-45, 6e-42, -6e-42, 1e-38, 0.1, -0.1, 0.5, 1.0, -1.0, 3.1e4, -3.1e4, 3.4e38, -3.4e38]


@pytest.mark.parametrize("score", EDGE_CASES)
def test_a_bin_reaches_from_its_lowest_score_to_its_highest(score: float) -> None:
    low, high = edges_of(score)
    assert low <= np.float32(score) <= high
    assert curve_of([score, low, high], [0.0]).thresholds.tolist() == [low]
    below, above = np.nextafter(np.float32([low, high]), np.float32([-np.inf, np.inf]))
    neighbours = [float(x) for x in (below, above) if np.isfinite(x)]
    expected = sorted({low, *(edges_of(x)[0] for x in neighbours)}, reverse=True)
    assert len(expected) == 1 + len(neighbours)
    assert curve_of([score, *neighbours], [0.0]).thresholds.tolist() == expected


@ALWAYS_THE_SAME
@given(st.lists(finite, min_size=1), st.lists(finite, min_size=1))
def test_thresholds_are_the_lower_edges_of_the_bins_of_anomalous_scores(
    anomalous: list[float], normal: list[float]
) -> None:
    curve = curve_of(anomalous, normal)
    edges = sorted({edges_of(score)[0] for score in anomalous}, reverse=True)
    assert curve.thresholds.tolist() == edges
    assert curve.true_positives.tolist() == [sum(score >= edge for score in anomalous) for edge in edges]
    assert curve.normals_at_or_above.tolist() == [sum(score >= edge for score in normal) for edge in edges]
    highest = [edges_of(edge)[1] for edge in edges]
    assert curve.normals_above.tolist() == [sum(score > top for score in normal) for top in highest]
    assert (curve.num_anomalous, curve.num_normal) == (len(anomalous), len(normal))


@ALWAYS_THE_SAME
@given(st.lists(finite | crowded, min_size=1), st.lists(finite | crowded, min_size=1))
def test_predicting_by_the_threshold_gives_the_f1_of_the_histogram(anomalous: list[float], normal: list[float]) -> None:
    best = f1_max(curve_of(anomalous, normal))
    assert best is not None
    assert f1_at(best.threshold, anomalous, normal) == best.value
    edges = {edges_of(score)[0] for score in (*anomalous, *normal)}
    assert all(f1_at(edge, anomalous, normal) <= best.value for edge in edges)
    assert all(f1_at(edge, anomalous, normal) < best.value for edge in edges if edge > best.threshold)


@ALWAYS_THE_SAME
@given(st.lists(st.tuples(finite, st.booleans()), min_size=2))
def test_where_bins_part_the_scores_the_threshold_is_the_exact_one_to_its_bin(scored: list[tuple[float, bool]]) -> None:
    one_a_bin = {edges_of(score)[0]: score for score, _ in scored}
    anomalous = [one_a_bin[edges_of(score)[0]] for score, is_anomalous in scored if is_anomalous]
    normal = [one_a_bin[edges_of(score)[0]] for score, is_anomalous in scored if not is_anomalous]
    assume(anomalous and normal)
    exact = f1_max(exact_curve(torch.tensor(anomalous), torch.tensor(normal)))
    best = f1_max(curve_of(anomalous, normal))
    assert best is not None
    assert exact is not None
    assert exact.value == max(f1_at(score, anomalous, normal) for score in anomalous)
    assert best == (exact.value, edges_of(exact.threshold)[0])


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-30, 0.0), (0.01, 1.0), (0.01, -1.0), (1e30, 0.0)])
def test_maps_at_or_above_the_reported_threshold_have_the_reported_f1(scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 20, 20, generator=generator) < 0.1
    maps = (torch.randn(4, 20, 20, generator=generator) + 1.5 * masks) * scale + shift
    metric = PixelMetrics(max_pixels=0)
    metric.update(maps, masks)
    result = metric.compute()
    predicted = maps >= result["pixel_F1Max_threshold"]
    f1 = 2 * int((predicted & masks).sum()) / int(predicted.sum() + masks.sum())
    assert result["pixel_F1Max"] == pytest.approx(f1, abs=1e-15)
    exact = exact_curve(maps[masks], maps[~masks])
    best = f1_max(exact)
    assert best is not None
    assert best.value - result["pixel_F1Max_error"] <= f1 <= best.value


class Bin(NamedTuple):
    """What is known of a bin. Bins are counted upwards from 1, or from -1 where scores are negative."""

    number: int
    anomalous: int
    normal: int


class Case(NamedTuple):
    """Scores in one order, and the regions of the anomalous ones as runs of so many pixels."""

    anomalous: list[float]
    normal: list[float]
    regions: list[int]

    @property
    def areas(self) -> list[int]:
        return [area for area in self.regions for _ in range(area)]


def score_in(number: int, place: int) -> float:
    """The score at a place, 0 to 4095 upwards, in a bin beside 1 or -1."""
    pattern = 0x3F80_0000 + number * PLACES + place if number >= 0 else 0xBF80_0000 + ~number * PLACES + ~place % PLACES
    return float(struct.unpack("<f", struct.pack("<I", pattern))[0])


Order = Callable[[Bin], tuple[Sequence[int], Sequence[int]]]  # the places of a bin's anomalous and of its normal scores


def best(content: Bin) -> tuple[Sequence[int], Sequence[int]]:
    return [PLACES - 1] * content.anomalous, range(content.normal)


def worst(content: Bin) -> tuple[Sequence[int], Sequence[int]]:
    """The anomalous ones lie apart: a tie would lift all of them to the precision of the last."""
    return range(content.anomalous), [PLACES - 1] * content.normal


def arrange(contents: Sequence[Bin], order: Order, regions: Sequence[int]) -> Case:
    anomalous, normal = [], []
    for content in contents:
        for scores, places in zip((anomalous, normal), order(content), strict=True):
            scores += [score_in(content.number, place) for place in places]
    return Case(anomalous, normal, list(regions))


def reported(case: Case, max_fpr: float = 0.3) -> dict[str, tuple[float, float]]:
    """Each metric as the histogram has it, and its bound."""
    curve = curve_of(case.anomalous, case.normal, case.areas)
    best_f1 = f1_max(curve)
    assert best_f1 is not None
    return {
        "auroc": (auroc(curve), auroc_error(curve)),
        "ap": (average_precision(curve), average_precision_error(curve)),
        "f1": (best_f1.value, f1_max_error(curve)),
        "aupro": (aupro(curve, max_fpr), aupro_error(curve, max_fpr)),
    }


def true(case: Case, slow_aupro: Callable[..., float], max_fpr: float = 0.3) -> dict[str, float]:
    truth = np.repeat([1, 0], [len(case.anomalous), len(case.normal)])
    scores = np.array(case.anomalous + case.normal)
    precision, recall, _ = precision_recall_curve(truth, scores)
    maps = np.split(np.array(case.anomalous)[None], np.cumsum(case.regions)[:-1], axis=1)  # an image a region
    masks = [np.ones_like(one) for one in maps] + [np.zeros((1, len(case.normal)))]
    return {
        "auroc": roc_auc_score(truth, scores),
        "ap": average_precision_score(truth, scores),
        "f1": float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))),
        "aupro": slow_aupro([*maps, np.array(case.normal)[None]], masks, max_fpr),
    }


def assert_bounds_are_tight(found: dict[str, tuple[float, float]], *orders: dict[str, float]) -> None:
    """The bounds hold for all orders and are reached by one of them, that of AP but for 5 %."""
    for name, (value, bound) in found.items():
        largest = max(abs(value - order[name]) for order in orders)
        assert largest - ROUNDING <= bound <= (1.05 if name == "ap" else 1) * largest + ROUNDING, name


@st.composite
def bins(draw: st.DrawFn, most: int = 6) -> tuple[list[Bin], list[int]]:
    """Up to five bins, of one sign or both, and how the anomalous pixels are cut into regions."""
    numbers = draw(st.lists(st.integers(-3, 3), min_size=1, max_size=5, unique=True))
    contents = [Bin(n, draw(st.integers(0, most)), draw(st.integers(0, most))) for n in numbers]
    left = sum(content.anomalous for content in contents)
    assume(left and sum(content.normal for content in contents))
    regions = []
    while left:
        regions.append(draw(st.integers(1, left)))
        left -= regions[-1]
    return contents, regions


@ALWAYS_THE_SAME
@given(bins(), st.randoms(use_true_random=False), st.sampled_from([0.05, 0.3, 1.0]))
def test_no_order_is_further_off_than_the_bound(brute_force_aupro, drawn, random, max_fpr) -> None:
    def any_order(content: Bin) -> tuple[Sequence[int], Sequence[int]]:
        few = random.choice([2, 4, PLACES])  # few places make ties
        anomalous, normal = ([random.randrange(few) for _ in range(number)] for number in content[1:])
        return anomalous, normal

    contents, regions = drawn
    case = arrange(contents, any_order, regions)
    exact = true(case, brute_force_aupro, max_fpr)
    for name, (value, bound) in reported(case, max_fpr).items():
        assert abs(value - exact[name]) <= bound + ROUNDING, name


@ALWAYS_THE_SAME
@given(bins(most=40), st.sampled_from([0.05, 0.3, 1.0]))
def test_bounds_are_the_errors_of_the_extreme_orders(brute_force_aupro, drawn, max_fpr) -> None:
    contents, regions = drawn
    cases = [arrange(contents, order, regions) for order in (best, worst)]
    found = reported(cases[0], max_fpr)
    assert reported(cases[1], max_fpr) == found
    assert_bounds_are_tight(found, *(true(case, brute_force_aupro, max_fpr) for case in cases))


@pytest.mark.parametrize(
    ("contents", "regions"),
    [
        ([Bin(0, 2, 1), Bin(1, 1, 1)], [1, 2]),
        ([Bin(0, 1, 1), Bin(-1, 2, 1)], [2, 1]),
        ([Bin(0, 3, 1)], [3]),
        ([Bin(-2, 0, 1), Bin(0, 3, 0), Bin(5, 0, 1)], [1, 1, 1]),
    ],
)
def test_bounds_are_the_largest_errors_of_all_orders(brute_force_aupro, contents, regions) -> None:
    orders = []
    for content in contents:  # all orders and ties: each score takes one of as many places as there are scores
        places = range(content.anomalous + content.normal)
        two = (itertools.combinations_with_replacement(places, number) for number in content[1:])
        orders.append(list(itertools.product(*two)))
    cases = [
        arrange(contents, dict(zip(contents, chosen, strict=True)).__getitem__, regions)
        for chosen in itertools.product(*orders)
    ]
    assert_bounds_are_tight(reported(cases[0]), *(true(case, brute_force_aupro) for case in cases))


@pytest.mark.parametrize("above", [Bin(7, 0, 1), Bin(7, 2, 3), Bin(7, 1, 1)])
@pytest.mark.parametrize("below", [Bin(0, 1, 0), Bin(0, 2, 0), Bin(-4, 1, 2)])
def test_the_bound_of_ap_is_exact_where_bins_hold_two_anomalous_scores_at_most(brute_force_aupro, below, above) -> None:
    contents = [below, above]
    cases = [arrange(contents, order, [1] * (below.anomalous + above.anomalous)) for order in (best, worst)]
    value, bound = reported(cases[0])["ap"]
    assert bound == pytest.approx(max(abs(true(case, brute_force_aupro)["ap"] - value) for case in cases), abs=1e-12)


@pytest.mark.parametrize(("anomalous", "normal"), [(2000, 1), (2000, 40), (1, 2000), (300, 300)])
@pytest.mark.parametrize("above", [Bin(7, 0, 1), Bin(7, 30, 0), Bin(7, 1, 50)])
def test_bounds_of_full_bins(brute_force_aupro, anomalous, normal, above) -> None:
    contents, regions = [Bin(0, anomalous, normal), above], [anomalous, above.anomalous][: 1 + (above.anomalous > 0)]
    cases = [arrange(contents, order, regions) for order in (best, worst)]
    assert_bounds_are_tight(reported(cases[0]), *(true(case, brute_force_aupro) for case in cases))
