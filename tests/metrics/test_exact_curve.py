"""AUROC, AP and F1-max against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from src.metrics import AUROC, AveragePrecision, F1Max
from src.metrics.functional import (
    ascending,
    auroc,
    average_precision,
    count_normals,
    exact_curve,
    f1_max,
    sort_and_count,
)


def draw(seed: int, levels: int | None, n: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that overlap between the classes, of any sign; `levels` of them, or no ties to speak of."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(n, generator=generator) < 0.05 + 0.1 * (seed % 5)
    score = torch.randn(n, generator=generator) + target
    return (score if levels is None else (score * levels / 4).round() - 3), target


def curve_of(score: torch.Tensor, target: torch.Tensor):
    return exact_curve(score[target], score[~target])


def sklearn_f1_max(target: np.ndarray, score: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(target, score)
    return float(np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-300)))


@pytest.mark.parametrize("levels", [None, 2, 10, 200])
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_scikit_learn(seed, levels):
    score, target = draw(seed, levels)
    curve, y, s = curve_of(score, target), target.numpy(), score.numpy()
    assert auroc(curve) == pytest.approx(roc_auc_score(y, s), abs=1e-9)
    assert average_precision(curve) == pytest.approx(average_precision_score(y, s), abs=1e-9)
    assert f1_max(curve).value == pytest.approx(sklearn_f1_max(y, s), abs=1e-9)


@pytest.mark.parametrize("levels", [None, 3, 40])
@pytest.mark.parametrize("seed", range(4))
def test_f1_is_attained_at_its_threshold_and_at_no_higher_one(seed, levels):
    score, target = draw(seed, levels, n=400)
    best = f1_max(curve_of(score, target))

    def f1(threshold: float) -> float:
        predicted = score >= threshold
        return 2 * float((predicted & target).sum()) / float(predicted.sum() + target.sum())

    assert f1(best.threshold) == best.value
    assert all(f1(t) < best.value for t in score.unique().tolist() if t > best.threshold)
    assert all(f1(t) <= best.value for t in score.unique().tolist())


def test_tiny_case_by_hand():
    # From the top: 0.9 anomalous; 0.5 one of each; 0.1 normal; 0.0 anomalous.
    curve = exact_curve(torch.tensor([0.5, 0.9, 0.0]), torch.tensor([0.1, 0.5]))
    assert curve.thresholds.tolist() == pytest.approx([0.9, 0.5, 0.0])
    assert curve.true_positives.tolist() == [1, 2, 3]
    assert curve.normals_above.tolist() == [0, 0, 2]
    assert curve.normals_at_or_above.tolist() == [0, 1, 2]
    assert (curve.num_anomalous, curve.num_normal, curve.overlap) == (3, 2, None)
    assert auroc(curve) == pytest.approx((2 + 1.5 + 0) / 6)
    assert average_precision(curve) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert f1_max(curve) == (0.75, 0.0)  # 2/4, 4/6, 6/8


def test_of_equal_f1_the_highest_threshold_counts():
    # F1 is 2 * 1 / (1 + 2) at 0.9 and 2 * 2 / (4 + 2) at 0.2.
    curve = exact_curve(torch.tensor([0.9, 0.2]), torch.tensor([0.5, 0.4]))
    assert f1_max(curve) == (pytest.approx(2 / 3), pytest.approx(0.9))


def test_equal_scores_rank_nothing():
    curve = exact_curve(torch.full((3,), 0.25), torch.full((9,), 0.25))
    assert auroc(curve) == 0.5
    assert average_precision(curve) == 0.25
    assert f1_max(curve) == (0.4, 0.25)


def test_perfect_separation_is_exactly_one():
    curve = exact_curve(torch.linspace(2, 3, 49), torch.linspace(-1, 1, 1001))
    assert (auroc(curve), average_precision(curve), f1_max(curve)) == (1.0, 1.0, (1.0, 2.0))


@pytest.mark.parametrize(("num_anomalous", "num_normal"), [(0, 5), (5, 0), (0, 0)])
def test_a_missing_class_makes_every_metric_absent(num_anomalous, num_normal):
    curve = exact_curve(torch.rand(num_anomalous), torch.rand(num_normal))
    assert (auroc(curve), average_precision(curve), f1_max(curve)) == (None, None, None)
    assert not curve.has_both_classes


@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (4096.0, -1000.0), (1e-4, 7.0), (1e30, 0.0)])
def test_only_the_ranking_counts(scale, shift):
    score, target = draw(1, levels=64)
    moved = score.double() * scale + shift
    assert moved.float().unique().numel() == score.unique().numel()  # float32 keeps the ranking
    before, after = curve_of(score, target), curve_of(moved.float(), target)
    assert auroc(after) == auroc(before)
    assert average_precision(after) == average_precision(before)
    assert f1_max(after).value == f1_max(before).value
    assert f1_max(after).threshold == pytest.approx(f1_max(before).threshold * scale + shift, rel=1e-6)


def test_scores_far_from_zero_are_not_squashed_into_ties():
    # A sigmoid sends all of these to 1.0 in float32.
    assert auroc(exact_curve(torch.tensor([41.0, 43.0]), torch.tensor([40.0, 42.0]))) == 0.75


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_dtypes(dtype):
    score, target = draw(2, levels=None)
    score = score.to(dtype)
    expected = roc_auc_score(target.numpy(), score.double().numpy())
    assert auroc(curve_of(score, target)) == pytest.approx(expected, abs=1e-9)


def test_float64_ranks_what_float32_cannot():
    one = torch.tensor([1.0], dtype=torch.float64)
    assert auroc(exact_curve(one + 1e-12, one)) == 1.0
    assert auroc(exact_curve(one + 1e-12, one.float())) == 1.0


@pytest.mark.parametrize("levels", [None, 5, 300])
def test_counts_over_more_scores_than_a_chunk_holds(levels):
    score, _ = draw(3, levels, n=200_000)
    normal, thresholds = score[1000:].numpy(), score[:1000].unique().flip(0)
    thresholds = torch.cat((thresholds[:1] + 99, thresholds, thresholds[-1:] - 99))
    above, at_or_above = count_normals(thresholds, ascending(score[1000:]))
    assert above.tolist() == [int((normal > t).sum()) for t in thresholds.numpy()]
    assert at_or_above.tolist() == [int((normal >= t).sum()) for t in thresholds.numpy()]


def test_normal_counts_add_up_over_a_partition():
    # What lets processes exchange thresholds and counts instead of maps.
    score, target = draw(3, levels=30)
    curve, normal = curve_of(score, target), score[~target]
    parts = [count_normals(curve.thresholds, ascending(part)) for part in (normal[:7], normal[7:7], normal[7:])]
    assert torch.equal(sum(above for above, _ in parts), curve.normals_above)
    assert torch.equal(sum(at for _, at in parts), curve.normals_at_or_above)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("num_normal", "num_values"), [(20_000, 300), (20_000, 10**9), (2, 50), (0, 50)])
def test_threads_count_what_comparing_all_pairs_counts(
    monkeypatch: pytest.MonkeyPatch, threads: int, num_normal: int, num_values: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(threads)
    normals = rng.integers(num_values, size=num_normal).astype(np.float32)
    thresholds = np.unique(
        np.append(rng.choice(normals, 2000) if num_normal else [], rng.integers(num_values, size=9000))
    )
    thresholds = thresholds.astype(np.float32)[::-1].copy()  # more than a block of them
    above, at_or_above = sort_and_count(torch.from_numpy(thresholds), torch.from_numpy(normals.copy()))
    for start in range(0, len(thresholds), 500):  # all pairs at once would not fit
        block = thresholds[start : start + 500, None]
        np.testing.assert_array_equal(above[start : start + 500], (normals > block).sum(axis=1))
        np.testing.assert_array_equal(at_or_above[start : start + 500], (normals >= block).sum(axis=1))


def test_counts_beyond_int32_and_float32():
    # 200 native images: 6e6 anomalous times 3e8 normal pixels overflow int32, and float32 can't count to 3e8.
    curve = exact_curve(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0]))
    anomalous, normal = 6_000_000, 300_000_001
    assert {t.dtype for t in curve[1:2] + curve[3:5]} == {torch.int64}
    curve = curve._replace(
        true_positives=torch.tensor([1, anomalous]),
        normals_above=torch.tensor([0, 0]),
        normals_at_or_above=torch.tensor([0, normal - 1]),
        num_normal=normal,
    )
    exact_auroc = (normal + (anomalous - 1) * (normal - (normal - 1) / 2)) / (anomalous * normal)
    assert auroc(curve) == pytest.approx(exact_auroc, abs=1e-15)
    exact_ap = (1 + (anomalous - 1) * anomalous / (anomalous + normal - 1)) / anomalous
    assert average_precision(curve) == pytest.approx(exact_ap, abs=1e-15)
    assert f1_max(curve).value == pytest.approx(2 * anomalous / (2 * anomalous + normal - 1), abs=1e-15)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_scores_are_refused_by_name(bad):
    good, broken = torch.rand(4), torch.tensor([0.1, bad, 0.2])
    with pytest.raises(ValueError, match="Expected argument `anomalous_scores` to be finite"):
        exact_curve(broken, good)
    with pytest.raises(ValueError, match="Expected argument `normal_scores` to be finite"):
        exact_curve(good, broken)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"`anomalous_scores` to be a floating point tensor, but got torch\.int64"):
        exact_curve(torch.tensor([1, 2]), torch.rand(2))
    with pytest.raises(ValueError, match=r"`normal_scores` to have 1 dimension\(s\), but got shape \(2, 2\)"):
        exact_curve(torch.rand(2), torch.rand(2, 2))
    with pytest.raises(ValueError, match=r"`areas` to have the shape of `anomalous_scores`, \(2,\), but got \(3,\)"):
        exact_curve(torch.rand(2), torch.rand(2), torch.rand(3))


@pytest.mark.parametrize("metric_class", [AUROC, AveragePrecision, F1Max])
def test_single_metric_classes(metric_class):
    score, target = draw(4, levels=20)
    score = score * 10  # beyond [0, 1]: torchmetrics' own classes would apply a sigmoid
    y, s = target.numpy(), score.numpy()
    expected = {AUROC: roc_auc_score, AveragePrecision: average_precision_score, F1Max: sklearn_f1_max}
    metric = metric_class()
    metric.update(score[:90].view(9, 10), target[:90].view(9, 10))
    metric.update(score[90:], target[90:].long())
    assert metric.compute().item() == pytest.approx(expected[metric_class](y, s), abs=1e-9)
    metric.reset()
    metric.update(score[~target], target[~target])
    assert metric.compute().isnan()


@pytest.mark.parametrize("bad", [[255, 0], [2, 1], [-1, 1], [-1.0, 0.0], [0.5, 1.0], [1.0, float("nan")], [255]])
def test_targets_other_than_0_and_1_are_refused(bad):
    metric = AUROC()
    with pytest.raises(ValueError, match="Expected argument `targets` to hold only 0 and 1"):
        metric.update(torch.rand(len(bad)), torch.tensor(bad))
    assert metric.anomalous_scores == metric.normal_scores == []


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_an_empty_batch_changes_nothing(dtype):
    metric = AUROC()
    metric.update(torch.rand(0), torch.zeros(0, dtype=dtype))
    metric.update(torch.tensor([0.5, 0.25]), torch.tensor([1, 0], dtype=dtype))
    metric.update(torch.rand(0), torch.zeros(0, dtype=dtype))
    assert metric.compute() == 1


def test_single_metric_classes_refuse_targets_that_are_no_truth():
    with pytest.raises(ValueError, match="Expected argument `targets` to hold only 0 and 1"):
        AUROC().update(torch.rand(2), torch.tensor([0, 255]))
    with pytest.raises(ValueError, match="`targets` to have the shape of `scores`"):
        AUROC().update(torch.rand(2), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="`targets` to be a tensor of 0 and 1, but got ndarray"):
        AUROC().update(torch.rand(2), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"`targets` to be a tensor of 0 and 1, but got torch\.complex64"):
        AUROC().update(torch.rand(2), torch.tensor([0, 1j]))
