"""The loss against its formula, pixel by pixel."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from torch import Tensor

from src.models.losses import dice_loss, focal_loss


def random_case() -> tuple[Tensor, Tensor]:
    """Probabilities (2, 2, 3, 5) and a mask (2, 3, 5), in float64."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64).softmax(dim=1)
    return probabilities, (torch.rand(2, 3, 5, generator=generator) > 0.6).long()


def stack(anomalous: Tensor) -> Tensor:
    return torch.stack([1 - anomalous, anomalous], dim=1)


def test_focal_is_the_mean_over_pixels_of_the_smoothed_formula() -> None:
    probabilities, mask = random_case()
    values = []
    for image, row, column in np.ndindex(*mask.shape):
        one_hot = [1 - int(mask[image, row, column]), int(mask[image, row, column])]
        smoothed = [min(max(target, 1e-5), 1 - 1e-5) for target in one_hot]
        p = sum(t * float(probabilities[image, c, row, column]) for c, t in enumerate(smoothed)) + 1e-5
        values.append(-((1 - p) ** 2) * log(p))
    assert focal_loss(probabilities, mask).item() == pytest.approx(np.mean(values), rel=1e-12)


def test_dice_is_the_mean_over_images() -> None:
    probabilities, mask = random_case()
    expected = []
    for image in range(2):
        p, t = probabilities[image, 1].numpy().ravel(), mask[image].numpy().ravel()
        overlap = sum(float(a) * int(b) for a, b in zip(p, t, strict=True))
        expected.append(1 - (2 * overlap + 1) / (float(p.sum()) + int(t.sum()) + 1))
    assert dice_loss(probabilities[:, 1], mask).item() == pytest.approx(sum(expected) / 2, rel=1e-12)


def test_a_perfect_prediction_costs_nothing() -> None:
    mask = torch.eye(4)[None]
    assert focal_loss(stack(mask), mask).item() == pytest.approx(0, abs=1e-9)
    assert dice_loss(mask, mask).item() == 0


def test_a_wrong_prediction_costs_much_but_not_infinitely() -> None:
    mask = torch.eye(4)[None]
    assert focal_loss(stack(1 - mask), mask).item() == pytest.approx(-((1 - 2e-5) ** 2) * log(2e-5), rel=1e-4)
    assert dice_loss(1 - mask, mask).item() == pytest.approx(1 - 1 / 17)


def test_an_undecided_prediction() -> None:
    mask = torch.tensor([[[1, 0]]])
    half = torch.full((1, 1, 2), 0.5)
    assert focal_loss(stack(half), mask).item() == pytest.approx(log(2) / 4, rel=1e-3)
    assert dice_loss(half, mask).item() == pytest.approx(1 - 2 / 3)


def test_an_image_without_anomaly_rewards_silence() -> None:
    mask = torch.zeros(1, 3, 3)
    assert dice_loss(torch.zeros(1, 3, 3), mask).item() == 0
    assert dice_loss(torch.ones(1, 3, 3), mask).item() == pytest.approx(0.9)


def test_integer_bool_and_float_masks_agree() -> None:
    probabilities, mask = random_case()
    for other in (mask.bool(), mask.to(torch.uint8), mask.double()):
        assert focal_loss(probabilities, other) == focal_loss(probabilities, mask)
        assert dice_loss(probabilities[:, 1], other) == dice_loss(probabilities[:, 1], mask)


def test_gradients_are_the_numerical_ones_and_point_to_the_mask() -> None:
    probabilities, mask = random_case()
    logits = probabilities.log().requires_grad_()

    def total(x: Tensor) -> Tensor:
        p = x.softmax(dim=1)
        return focal_loss(p, mask) + dice_loss(p[:, 1], mask)

    assert torch.autograd.gradcheck(total, (logits,))
    (gradient,) = torch.autograd.grad(total(logits), logits)
    assert (gradient[:, 1][mask == 1] < 0).all()
    assert (gradient[:, 1][mask == 0] > 0).all()
