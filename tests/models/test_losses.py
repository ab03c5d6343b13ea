"""The loss against its formula, pixel by pixel."""

from __future__ import annotations

from math import exp, inf, log, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.models.losses import check_loss_weights, segmentation_loss

SURE = 200.0  # a margin that is a probability of 1


def random_case() -> tuple[Tensor, Tensor]:
    """Margins (2, 3, 3, 5) and a mask (2, 3, 5), in float64."""
    generator = torch.Generator().manual_seed(0)
    margins = 2 * torch.randn(2, 3, 3, 5, generator=generator, dtype=torch.float64)
    return margins, (torch.rand(2, 3, 5, generator=generator) > 0.6).long()


def margins_of(anomalous: Tensor) -> Tensor:
    """One level that is sure of an image's pixels (1, H, W) of {0, 1}."""
    return (2 * anomalous[:, None].double() - 1) * SURE


def test_focal_is_the_mean_over_pixels_of_the_smoothed_formula() -> None:
    margins, mask = random_case()
    values = []
    for image, level, row, column in np.ndindex(*margins.shape):
        anomalous = 1 / (1 + exp(-float(margins[image, level, row, column])))
        one_hot = [1 - int(mask[image, row, column]), int(mask[image, row, column])]
        smoothed = [min(max(target, 1e-5), 1 - 1e-5) for target in one_hot]
        p = sum(t * q for t, q in zip(smoothed, (1 - anomalous, anomalous), strict=True)) + 1e-5
        values.append(-((1 - p) ** 2) * log(p))
    assert segmentation_loss(margins, mask)["focal"].item() == pytest.approx(3 * np.mean(values), rel=1e-12)


def test_dice_is_the_mean_over_images() -> None:
    margins, mask = random_case()
    expected = []
    for image, level in np.ndindex(2, 3):
        p, t = margins[image, level].sigmoid().numpy().ravel(), mask[image].numpy().ravel()
        overlap = sum(float(a) * int(b) for a, b in zip(p, t, strict=True))
        expected.append(1 - (2 * overlap + 1) / (float(p.sum()) + int(t.sum()) + 1))
    assert segmentation_loss(margins, mask)["dice"].item() == pytest.approx(sum(expected) / 2, rel=1e-12)


def test_the_loss_is_the_weighted_sum_of_both() -> None:
    total, focal, dice = segmentation_loss(*random_case()).values()
    assert total == focal + dice
    weighted = segmentation_loss(*random_case(), focal_weight=0.5, dice_weight=3)
    assert weighted["loss"] == 0.5 * focal + 3 * dice
    assert (weighted["focal"], weighted["dice"]) == (focal, dice)


def test_a_perfect_prediction_costs_nothing() -> None:
    mask = torch.eye(4)[None]
    loss = segmentation_loss(margins_of(mask), mask)
    assert loss["focal"].item() == pytest.approx(0, abs=1e-9)
    assert loss["dice"].item() == 0


def test_a_wrong_prediction_costs_much_but_not_infinitely() -> None:
    mask = torch.eye(4)[None]
    loss = segmentation_loss(margins_of(1 - mask), mask)
    assert loss["focal"].item() == pytest.approx(-((1 - 2e-5) ** 2) * log(2e-5), rel=1e-4)
    assert loss["dice"].item() == pytest.approx(1 - 1 / 17)


def test_an_undecided_prediction() -> None:
    loss = segmentation_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 0]]]))
    assert loss["focal"].item() == pytest.approx(log(2) / 4, rel=1e-3)
    assert loss["dice"].item() == pytest.approx(1 - 2 / 3)


def test_an_image_without_anomaly_rewards_silence() -> None:
    mask = torch.zeros(1, 3, 3)
    assert segmentation_loss(margins_of(mask), mask)["dice"].item() == 0
    assert segmentation_loss(margins_of(mask + 1), mask)["dice"].item() == pytest.approx(0.9)


def test_float32_is_precise_where_hardly_anything_is_left_to_learn() -> None:
    mask = torch.zeros(1, 240, 240)
    margins = torch.full((1, 1, 240, 240), -11.0)
    outside = 240 * 240 / (1 + exp(11))
    assert segmentation_loss(margins, mask)["dice"].item() == pytest.approx(1 - 1 / (outside + 1), rel=1e-4)


def test_integer_bool_and_float_masks_agree() -> None:
    margins, mask = random_case()
    for other in (mask.bool(), mask.to(torch.uint8), mask.double()):
        assert segmentation_loss(margins, other) == segmentation_loss(margins, mask)


def test_gradients_are_the_numerical_ones_and_point_to_the_mask() -> None:
    margins, mask = random_case()
    margins.requires_grad_()
    for weights in ((1, 1), (0, 1), (1, 0), (0.5, 3)):
        assert torch.autograd.gradcheck(lambda x, w=weights: 3 * segmentation_loss(x, mask, *w)["loss"], (margins,))
    (gradient,) = torch.autograd.grad(segmentation_loss(margins, mask)["loss"], margins)
    anomalous = mask[:, None].expand_as(gradient)
    assert (gradient[anomalous == 1] < 0).all()
    assert (gradient[anomalous == 0] > 0).all()


@pytest.mark.parametrize("weights", [(1, 1.0), (0, 0.5), (2, 0)])
def test_a_weight_may_be_0_beside_another(weights: tuple[float, float]) -> None:
    check_loss_weights(focal=weights[0], dice=weights[1])


@pytest.mark.parametrize("weights", [(0, 0.0), (-1e-9, 1), (1, -1), (1, inf), (nan, 1), ("1", 1), (1, None)])
def test_weights_that_no_loss_can_have_are_refused(weights: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be 0 or more, and not all 0, but got focal=.*, dice="):
        check_loss_weights(focal=weights[0], dice=weights[1])
