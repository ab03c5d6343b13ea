"""The segmentation loss of SDP+: focal plus dice.

B images, L levels, H x W pixels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd import Function

from datamodules.errors import UserError

FOCAL_SMOOTH = 1e-5
DICE_SMOOTH = 1.0


class SegmentationLoss(NamedTuple):
    """Scalars; only `loss`, the weighted sum of the two others, has a gradient."""

    loss: Tensor
    focal: Tensor
    dice: Tensor


def segmentation_loss(
    margins: Tensor, mask: Tensor, focal_weight: float = 1.0, dice_weight: float = 1.0
) -> SegmentationLoss:
    """Focal plus dice loss of two classes, summed over the levels.

    Focal (Lin et al., https://arxiv.org/abs/1708.02002, eq. 4, gamma 2, without class weights) is the mean over
    pixels. Its target is smoothed: the right class counts 1 - 1e-5 and the other 1e-5, and 1e-5 is added to the
    result, as in the reference. Dice (Milletari et al., https://arxiv.org/abs/1606.04797) is one minus the soft dice
    coefficient of each image's anomalous pixels, with 1 added to both sides of the fraction, averaged over images.

    Args:
        margins: (B, L, H, W), the logit of the anomalous class less that of the normal one, in float32 or float64.
        mask: (B, H, W) of {0, 1}.
        focal_weight: of focal in the sum.
        dice_weight: of dice in the sum.
    """
    target = mask.to(margins.dtype)
    parts = _FocalAndDice.apply(margins, target, focal_weight, dice_weight)
    return SegmentationLoss(*parts)


def check_loss_weights(**weights: float) -> None:
    """Refuse weights that no loss can have.

    Raises:
        UserError: one is negative or no number, or all are 0.
    """
    numbers = all(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in weights.values())
    if not numbers or not any(weights.values()):
        given = ", ".join(f"model.{name}={value}" for name, value in weights.items())
        raise UserError(f"the weights of the losses must be 0 or more, and not all 0, but got {given}")


class _FocalAndDice(Function):
    """The loss and its gradient, written out: in place, where autograd would keep twenty maps a level.

    In terms of r, the right class's probability, and s, which is 1 where the mask is and -1 elsewhere:
    r = sigmoid(s * margin), and dr / dmargin = s r (1 - r). The anomalous class's probability is r or 1 - r.
    """

    @staticmethod
    def forward(
        ctx: Any, margins: Tensor, mask: Tensor, focal_weight: float, dice_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mask = mask[:, None]  # (B, 1, H, W)
        sign = 2 * mask - 1
        signed = margins * sign  # (B, L, H, W)
        wrong = signed.neg().sigmoid_()  # not 1 - right, which keeps few digits where the prediction is sure
        right = signed.sigmoid_()
        focal, gradient = _focal(right)
        dice, at_mask, elsewhere = _dice(right, wrong, mask)
        gradient.mul_(focal_weight).add_(dice_weight * elsewhere).addcmul_(mask, dice_weight * (at_mask - elsewhere))
        gradient.mul_(right).mul_(wrong).mul_(sign)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(focal, dice)
        return focal_weight * focal + dice_weight * dice, focal, dice

    @staticmethod
    def backward(ctx: Any, *from_above: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * from_above[0], None, None, None


def _focal(right: Tensor) -> tuple[Tensor, Tensor]:
    """The focal loss of r, and its derivative by r: a scalar and (B, L, H, W).

    With q = (1 - 2e-5) r + 2e-5 it is the mean of -(1-q)^2 log q, whose derivative by q is 2 (1-q) log q - (1-q)^2 / q.
    """
    levels, scale = right.shape[1], 1 - 2 * FOCAL_SMOOTH
    probability = right * scale  # (B, L, H, W), as all of these
    probability += 2 * FOCAL_SMOOTH
    logarithm = probability.log()
    rest = 1 - probability
    gradient = rest.div(probability).sub_(logarithm, alpha=2).mul_(rest).mul_(-scale * levels / right.numel())
    return -rest.square_().mul_(logarithm).mean() * levels, gradient


def _dice(right: Tensor, wrong: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The dice loss of r, a scalar, and its derivative by r within the mask and elsewhere, both (B, L, 1, 1).

    The anomalous class's probability is r within the mask, and 1 - r elsewhere.
    """
    batch = mask.shape[0]
    inside = mask.flatten(2).transpose(1, 2)  # (B, H * W, 1)
    overlap = right.flatten(2) @ inside  # (B, L, 1)
    outside = wrong.flatten(2) @ (1 - inside)  # (B, L, 1)
    area = inside.sum(dim=1, keepdim=True)  # (B, 1, 1)
    above, below = 2 * overlap + DICE_SMOOTH, overlap + outside + area + DICE_SMOOTH
    at_mask, elsewhere = (above - 2 * below) / below**2 / batch, -above / below**2 / batch
    return (1 - above / below).sum() / batch, at_mask[..., None], elsewhere[..., None]
