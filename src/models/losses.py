"""The segmentation loss of SDP+: focal plus dice.

B images, H x W pixels; channel 0 is normal, channel 1 anomalous.
"""

import math

from torch import Tensor

from datamodules.errors import UserError

FOCAL_GAMMA = 2.0
FOCAL_SMOOTH = 1e-5
DICE_SMOOTH = 1.0


def focal_loss(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Focal loss without class weights (Lin et al., https://arxiv.org/abs/1708.02002, eq. 4), mean over pixels.

    The target is smoothed: the right class counts 1 - 1e-5 and the other 1e-5, and 1e-5 is added to the result, as
    in the reference.

    Args:
        probabilities: (B, 2, H, W), summing to 1 over the channels.
        mask: (B, H, W) of {0, 1}.

    Returns:
        A scalar.
    """
    target = mask.to(probabilities.dtype)
    anomalous, normal = probabilities[:, 1], probabilities[:, 0]  # (B, H, W)
    right = target * anomalous + (1 - target) * normal
    wrong = target * normal + (1 - target) * anomalous
    probability = (1 - FOCAL_SMOOTH) * right + FOCAL_SMOOTH * wrong + FOCAL_SMOOTH
    return -((1 - probability).pow(FOCAL_GAMMA) * probability.log()).mean()


def dice_loss(probability: Tensor, mask: Tensor) -> Tensor:
    """One minus the soft dice coefficient of each image (Milletari et al., https://arxiv.org/abs/1606.04797), averaged.

    Args:
        probability: (B, H, W) of the anomalous class, in [0, 1].
        mask: (B, H, W) of {0, 1}.

    Returns:
        A scalar in [0, 1).
    """
    predicted = probability.flatten(1)  # (B, H * W)
    target = mask.flatten(1).to(predicted.dtype)
    overlap = (predicted * target).sum(dim=1)
    dice = (2 * overlap + DICE_SMOOTH) / (predicted.sum(dim=1) + target.sum(dim=1) + DICE_SMOOTH)
    return (1 - dice).mean()


def check_loss_weights(**weights: float) -> None:
    """Refuse weights that no loss can have.

    Raises:
        UserError: one is negative or no number, or all are 0.
    """
    numbers = all(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in weights.values())
    if not numbers or not any(weights.values()):
        given = ", ".join(f"model.{name}={value}" for name, value in weights.items())
        raise UserError(f"the weights of the losses must be 0 or more, and not all 0, but got {given}")
