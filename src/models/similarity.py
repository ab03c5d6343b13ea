"""How anomalous an embedding is, by its similarity to two texts.

B images, N tokens, D embedding; the 2 classes are normal and anomalous.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

CLIP_SCALE = 100.0  # what CLIP has learned, and papers call a temperature of 0.01
FIXED_SCALE = 1 / 0.07  # WinCLIP's and AnomalyCLIP's, whatever the checkpoint has learned


def anomalous_probability(tokens: Tensor, text: Tensor, scale: float) -> Tensor:
    """The second of two probabilities: softmax(scale * cosine) over the two texts.

    Of two classes it is the sigmoid of the difference of their logits.

    Args:
        tokens: (B, ..., N, D), of any length.
        text: (B, D, 2), unit columns: 0 normal, 1 anomalous.
        scale: the inverse temperature, such as CLIP's 100.

    Returns:
        (B, ..., N), in [0, 1].

    Example:
        >>> import torch
        >>> text = torch.tensor([[[1.0, 0.99], [0.0, 0.141]]])
        >>> anomalous_probability(torch.tensor([[[2.0, 0.0]]]), text, scale=100)  # 1 / (1 + exp(100 * (1.0 - 0.99)))
        tensor([[0.2689]])
    """
    direction = text[..., 1] - text[..., 0]  # (B, D)
    direction = direction.view(len(text), *[1] * (tokens.ndim - 3), -1, 1)  # (B, ..., D, 1)
    return (scale * F.normalize(tokens, dim=-1) @ direction).sigmoid()[..., 0]
