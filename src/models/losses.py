"""The segmentation losses: focal and dice.

B images, L levels, H x W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FOCAL_SMOOTH = 1e-5
DICE_SMOOTH = 1.0


def segmentation_loss(
    margins: Tensor, mask: Tensor, focal_weight: float = 1.0, dice_weight: float = 1.0
) -> dict[str, Tensor]:
    """Focal plus dice loss of two classes, summed over the levels (CLIP-AD, section 3.3).

    Args:
        margins: (B, L, H, W), the logit of the anomalous class less that of the normal one, in float32 or float64.
        mask: (B, H, W) of {0, 1}.
        focal_weight: of focal in the sum.
        dice_weight: of dice in the sum.

    Returns:
        Scalars: `focal`, `dice`, and their weighted sum, `loss`.

    Example:
        >>> import torch
        >>> margins, mask = torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 0]]])
        >>> segmentation_loss(margins, mask)
        {'loss': tensor(0.5066), 'focal': tensor(0.1733), 'dice': tensor(0.3333)}
        >>> segmentation_loss(margins, mask, focal_weight=0.0)["loss"]
        tensor(0.3333)
    """
    target = mask[:, None].to(margins.dtype)  # (B, 1, H, W)
    focal = focal_loss(torch.where(target > 0, margins, -margins).sigmoid())
    dice = dice_loss(margins.sigmoid(), target)
    return {"loss": focal_weight * focal + dice_weight * dice, "focal": focal, "dice": dice}


def focal_loss(right: Tensor) -> Tensor:
    """The mean over pixels of -(1 - q)^2 log q, summed over the levels: a scalar.

    Lin et al., https://arxiv.org/abs/1708.02002, eq. 4, gamma 2, without class weights. q is the probability of the
    right class; as in the authors' code its target is smoothed, 1 - 1e-5 and 1e-5, and 1e-5 is added to the result.

    Args:
        right: (B, L, H, W), the probability of each pixel's right class, in [0, 1].

    Example:
        >>> import torch
        >>> focal_loss(torch.full((1, 2, 1, 2), 0.5))  # about 2 * 0.5 ** 2 * log(2)
        tensor(0.3465)
    """
    q = (1 - 2 * FOCAL_SMOOTH) * right + 2 * FOCAL_SMOOTH
    return -((1 - q) ** 2 * q.log()).mean() * right.shape[1]


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """One minus the soft dice coefficient of each image, averaged over the images, summed over the levels: a scalar.

    Milletari et al., https://arxiv.org/abs/1606.04797, with 1 added to both sides of the fraction.

    Args:
        probability: (B, L, H, W), of the anomalous class, in [0, 1].
        target: (B, 1, H, W) of {0, 1}.

    Example:
        >>> import torch
        >>> probability, target = torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
        >>> dice_loss(probability, target)  # 1 - (2 * 1 + 1) / (3 + 1)
        tensor(0.2500)
    """
    overlap = (probability * target).sum(dim=(2, 3))  # (B, L)
    area = probability.sum(dim=(2, 3)) + target.sum(dim=(2, 3))  # (B, L)
    return (1 - (2 * overlap + DICE_SMOOTH) / (area + DICE_SMOOTH)).mean(dim=0).sum()


def check_loss_weights(**weights: float) -> None:
    """Refuse weights that no loss can have.

    Raises:
        ValueError: one is negative or no number, or all are 0.

    Example:
        >>> check_loss_weights(focal_weight=1.0, dice_weight=0.0)
    """
    numbers = all(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in weights.values())
    if not numbers or not any(weights.values()):
        given = ", ".join(f"{name}={value}" for name, value in weights.items())
        raise ValueError(f"{' and '.join(weights)} must be 0 or more, and not all 0, but got {given}")
