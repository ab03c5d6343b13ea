"""Fusion of the two image scores, and ImageMetrics."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from src.metrics import ImageMetrics
from src.metrics.functional import fuse_image_scores

KEYS = {"image_AUROC", "image_AP", "image_F1Max", "image_F1Max_threshold"}


def draw(seed: int, n: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (n,), generator=generator)
    return (
        torch.rand(n, generator=generator) * 1e-3 + label * 3e-4,
        torch.randn(n, generator=generator) * 50 + label * 20,
        label,
    )


def evaluate(*arguments: torch.Tensor) -> dict[str, float]:
    metric = ImageMetrics()
    metric.update(*arguments)
    return metric.compute()


def test_fusion_by_hand():
    fused = fuse_image_scores(torch.tensor([0.25, 0.75, 0.5]), torch.tensor([-3.0, 1.0, 0.0]))
    assert fused.dtype == torch.float64
    assert fused.tolist() == [0.0, 2.0, 0.5 + 0.75]


def test_a_constant_term_counts_as_nothing():
    varied = torch.tensor([1.0, 3.0, 2.0])
    assert fuse_image_scores(torch.full((3,), 0.3), varied).tolist() == [0.0, 1.0, 0.5]
    assert fuse_image_scores(varied, torch.full((3,), 0.3)).tolist() == [0.0, 1.0, 0.5]
    assert fuse_image_scores(torch.ones(1), torch.ones(1)).tolist() == [0.0]
    assert fuse_image_scores(torch.ones(0), torch.ones(0)).shape == (0,)


def test_fusion_is_in_float64():
    # The first term becomes 0, 2^-30, 1; float32 loses 2^-30 beside the other term's 1.
    tiny = torch.tensor([0.0, 2.0**-60, 2.0**-30])
    fused = fuse_image_scores(tiny, torch.tensor([0.0, 1.0, 1.0]))
    assert fused[1] - 1.0 == 2.0**-30
    thirds, constant = torch.tensor([0.0, 1.0, 3.0]), torch.zeros(3)
    assert fuse_image_scores(thirds, constant)[1] == fuse_image_scores(constant, thirds)[1] == 1 / 3


def test_both_terms_count_whatever_their_scale():
    cls_score, map_max, _ = draw(0)
    expected = fuse_image_scores(cls_score, map_max)
    assert torch.allclose(fuse_image_scores(cls_score * 1024, map_max * 2**-20), expected, atol=1e-12, rtol=0)


def test_fusion_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"`map_max` to have the shape of `cls_score`, \(2,\), but got \(3,\)"):
        fuse_image_scores(torch.rand(2), torch.rand(3))
    with pytest.raises(ValueError, match="Expected argument `map_max` to be finite"):
        fuse_image_scores(torch.rand(2), torch.tensor([0.0, torch.inf]))


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_of_the_fused_score(seed):
    cls_score, map_max, label = draw(seed)
    result, fused = evaluate(cls_score, map_max, label), fuse_image_scores(cls_score, map_max).numpy()
    assert result.keys() == KEYS
    assert all(type(value) is float for value in result.values())
    assert result["image_AUROC"] == pytest.approx(roc_auc_score(label.numpy(), fused), abs=1e-12)
    assert result["image_AP"] == pytest.approx(average_precision_score(label.numpy(), fused), abs=1e-12)
    predicted = torch.from_numpy(fused) >= result["image_F1Max_threshold"]
    f1 = 2 * float((predicted & (label == 1)).sum()) / float(predicted.sum() + label.sum())
    assert result["image_F1Max"] == pytest.approx(f1, abs=1e-12)


def test_min_max_is_over_the_category_not_the_batch():
    cls_score, map_max, label = draw(1)
    metric = ImageMetrics()
    for rows in (slice(0, 1), slice(1, 40), slice(40, 60)):
        metric.update(cls_score[rows], map_max[rows], label[rows])
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
    metric, reused = ImageMetrics(), [cls_score.clone(), map_max.clone(), label.clone() == 1]
    metric.update(*reused)
    for value in reused:
        value.zero_()
    assert metric.compute() == evaluate(cls_score, map_max, label)


def test_bad_input_is_refused():
    cls_score, map_max, label = draw(5)
    metric = ImageMetrics()
    with pytest.raises(ValueError, match="Expected argument `cls_score` to be finite"):
        metric.update(torch.full_like(cls_score, torch.nan), map_max, label)
    with pytest.raises(ValueError, match="Expected argument `label` to hold only 0 and 1"):
        metric.update(cls_score, map_max, label + 1)
    with pytest.raises(ValueError, match=r"`label` to have the shape of `cls_score`, \(60,\), but got \(59,\)"):
        metric.update(cls_score, map_max, label[1:])
    with pytest.raises(ValueError, match=r"`cls_score` to have 1 dimension\(s\), but got shape \(60, 1\)"):
        metric.update(cls_score[:, None], map_max[:, None], label[:, None])
    assert metric.cls_score == []
