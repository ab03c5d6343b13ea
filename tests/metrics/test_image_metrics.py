"""Fusion of the image-level terms, and ImageMetrics."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from src.metrics import ImageMetrics
from src.metrics.functional import FUSIONS, fuse, needs_all_images

KEYS = {f"{level}_{name}" for level in ("image", "single") for name in ("AUROC", "AP", "F1Max", "F1Max_threshold")}


def draw(seed: int, n: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (n,), generator=generator)
    return (
        torch.rand(n, generator=generator) * 1e-3 + label * 3e-4,
        torch.randn(n, generator=generator) * 50 + label * 20,
        label,
    )


def evaluate(cls_score: torch.Tensor, map_max: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    metric = new()
    update(metric, cls_score, map_max, label)
    return metric.compute()


def new() -> ImageMetrics:
    return ImageMetrics(["cls_score", "map_max"], "min_max_sum")


def update(metric: ImageMetrics, cls_score: torch.Tensor, map_max: torch.Tensor, label: torch.Tensor) -> None:
    metric.update({"cls_score": cls_score, "map_max": map_max}, cls_score.clone(), label)


def min_max_sum(*terms: torch.Tensor) -> torch.Tensor:
    return fuse({str(i): term for i, term in enumerate(terms)}, torch.zeros(len(terms[0])), "min_max_sum")


def test_fusion_by_hand():
    fused = min_max_sum(torch.tensor([0.25, 0.75, 0.5]), torch.tensor([-3.0, 1.0, 0.0]))
    assert fused.dtype == torch.float64
    assert fused.tolist() == [0.0, 2.0, 0.5 + 0.75]
    assert min_max_sum(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert min_max_sum(*[torch.tensor([2.0, 4.0, 3.0])] * 3).tolist() == [0.0, 3.0, 1.5]


def test_half_sum_is_of_the_first_term_as_it_is_and_the_second_normalised():
    terms = {"text": torch.tensor([0.25, 0.75, 0.5]), "memory": torch.tensor([-3.0, 1.0, 0.0])}
    fused = fuse(terms, torch.zeros(3), "half_sum_min_max")
    assert fused.dtype == torch.float64
    assert fused.tolist() == [0.125, 0.875, 0.625]
    assert fuse(dict(reversed(terms.items())), torch.zeros(3), "half_sum_min_max").tolist() == [-1.5, 1.0, 0.25]
    constant = terms | {"memory": torch.ones(3)}
    assert fuse(constant, torch.zeros(3), "half_sum_min_max").tolist() == [0.125, 0.375, 0.25]


def test_the_single_score_is_taken_as_it_is_whatever_the_terms():
    scores = torch.tensor([-2.5, 7.0])
    for terms in ({}, {"a": torch.rand(2)}, {"a": torch.rand(2), "b": torch.rand(2), "c": torch.rand(2)}):
        fused = fuse(terms, scores, "single")
        assert fused.dtype == torch.float64
        assert fused.tolist() == [-2.5, 7.0]


@pytest.mark.parametrize("rule", FUSIONS)
def test_a_rule_needs_all_images_if_another_image_changes_a_score(rule):
    terms = {"a": torch.tensor([0.0, 1.0, 5.0]), "b": torch.tensor([0.0, 1.0, 7.0])}
    single = torch.tensor([0.0, 2.0, 12.0])
    alone = fuse({name: term[:2] for name, term in terms.items()}, single[:2], rule)
    assert needs_all_images(rule) == (fuse(terms, single, rule)[:2].tolist() != alone.tolist())


def test_a_rule_that_does_not_fit_is_refused():
    one, two = {"a": torch.rand(2)}, {"a": torch.rand(2), "b": torch.rand(2)}
    with pytest.raises(ValueError, match="one of min_max_sum, half_sum_min_max, single, but got mean"):
        fuse(two, torch.rand(2), "mean")
    for terms in ({}, one, two | {"c": torch.rand(2)}):
        with pytest.raises(ValueError, match="`terms` to have two terms for fusion half_sum_min_max"):
            fuse(terms, torch.rand(2), "half_sum_min_max")
    with pytest.raises(ValueError, match="`terms` to have a term or more for fusion min_max_sum"):
        fuse({}, torch.rand(2), "min_max_sum")
    with pytest.raises(ValueError, match="`terms` to name each once"):
        ImageMetrics(["a", "a"], "min_max_sum")


def test_a_constant_term_counts_as_nothing():
    varied = torch.tensor([1.0, 3.0, 2.0])
    assert min_max_sum(torch.full((3,), 0.3), varied).tolist() == [0.0, 1.0, 0.5]
    assert min_max_sum(varied, torch.full((3,), 0.3)).tolist() == [0.0, 1.0, 0.5]
    assert min_max_sum(torch.ones(1), torch.ones(1)).tolist() == [0.0]
    assert min_max_sum(torch.ones(0), torch.ones(0)).shape == (0,)


def test_fusion_is_in_float64():
    # The first term becomes 0, 2^-30, 1; float32 loses 2^-30 beside the other term's 1.
    tiny = torch.tensor([0.0, 2.0**-60, 2.0**-30])
    fused = min_max_sum(tiny, torch.tensor([0.0, 1.0, 1.0]))
    assert fused[1] - 1.0 == 2.0**-30
    thirds, constant = torch.tensor([0.0, 1.0, 3.0]), torch.zeros(3)
    assert min_max_sum(thirds, constant)[1] == min_max_sum(constant, thirds)[1] == 1 / 3


def test_both_terms_count_whatever_their_scale():
    cls_score, map_max, _ = draw(0)
    expected = min_max_sum(cls_score, map_max)
    assert torch.allclose(min_max_sum(cls_score * 1024, map_max * 2**-20), expected, atol=1e-12, rtol=0)


def test_fusion_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"`b` to have the shape of `single_score`, \(2,\), but got \(3,\)"):
        fuse({"a": torch.rand(2), "b": torch.rand(3)}, torch.rand(2), "min_max_sum")
    with pytest.raises(ValueError, match="Expected argument `b` to be finite"):
        fuse({"a": torch.rand(2), "b": torch.tensor([0.0, torch.inf])}, torch.rand(2), "min_max_sum")
    with pytest.raises(ValueError, match="Expected argument `single_score` to be finite"):
        fuse({}, torch.tensor([0.0, torch.nan]), "single")


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_of_the_fused_score(seed):
    cls_score, map_max, label = draw(seed)
    result, fused = evaluate(cls_score, map_max, label), min_max_sum(cls_score, map_max).numpy()
    assert result.keys() == KEYS
    assert all(type(value) is float for value in result.values())
    assert result["image_AUROC"] == pytest.approx(roc_auc_score(label.numpy(), fused), abs=1e-12)
    assert result["image_AP"] == pytest.approx(average_precision_score(label.numpy(), fused), abs=1e-12)
    predicted = torch.from_numpy(fused) >= result["image_F1Max_threshold"]
    f1 = 2 * float((predicted & (label == 1)).sum()) / float(predicted.sum() + label.sum())
    assert result["image_F1Max"] == pytest.approx(f1, abs=1e-12)


def test_min_max_is_over_the_category_not_the_batch():
    cls_score, map_max, label = draw(1)
    metric = new()
    for rows in (slice(0, 1), slice(1, 40), slice(40, 60)):
        update(metric, cls_score[rows], map_max[rows], label[rows])
    assert metric.compute() == evaluate(cls_score, map_max, label)


def test_order_of_images_does_not_matter():
    arguments = draw(2)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert evaluate(*(value[order] for value in arguments)) == evaluate(*arguments)


def test_a_missing_class_makes_all_absent():
    cls_score, map_max, label = draw(3)
    assert evaluate(cls_score, map_max, torch.zeros_like(label)) == {}
    assert evaluate(cls_score, map_max, torch.ones_like(label)) == {}


def test_states_do_not_alias_the_input():
    cls_score, map_max, label = draw(4)
    metric, reused = new(), [cls_score.clone(), map_max.clone(), label.clone() == 1]
    update(metric, *reused)
    for value in reused:
        value.zero_()
    assert metric.compute() == evaluate(cls_score, map_max, label)


def test_bad_input_is_refused():
    cls_score, map_max, label = draw(5)
    metric = new()
    with pytest.raises(ValueError, match="Expected argument `cls_score` to be finite"):
        update(metric, torch.full_like(cls_score, torch.nan), map_max, label)
    with pytest.raises(ValueError, match="Expected argument `label` to hold only 0 and 1"):
        update(metric, cls_score, map_max, label + 1)
    with pytest.raises(ValueError, match=r"`label` to have the shape of `single_score`, \(60,\), but got \(59,\)"):
        update(metric, cls_score, map_max, label[1:])
    with pytest.raises(ValueError, match=r"`single_score` to have 1 dimension\(s\), but got shape \(60, 1\)"):
        update(metric, cls_score[:, None], map_max[:, None], label[:, None])
    assert metric.scores == metric.label == []
