"""Feature surgery: what a token says about a class beyond what both classes share (CLIP-AD, section 3.2).

B images, N tokens (CLS first), D embedding; the 2 classes are normal and anomalous.
"""

from torch import Tensor
from torch.nn import functional as F


def surgery_similarity(tokens: Tensor, text: Tensor, scale: float = 1) -> Tensor:
    """Class-weighted similarity of each token, less its mean over the two classes.

    The reference forms the products (B, N, 2, D), weighs them, subtracts their mean over the classes and sums over D.
    Sum and mean are linear and the weight does not depend on D, so the sum can come first: no tensor of that size.

    Args:
        tokens: (B, N, D), unit length, CLS at 0.
        text: (B, D, 2), unit columns.
        scale: inverse temperature of CLS's decision between the classes; CLIP-AD has none, CLIP Surgery has 2.

    Returns:
        (B, N, 2).

    Example:
        >>> import torch
        >>> tokens = torch.eye(2)[None]  # CLS is as the normal text, the patch as the anomalous one
        >>> surgery_similarity(tokens, torch.eye(2)[None])
        tensor([[[ 0.7311, -0.7311],
                 [-0.2689,  0.2689]]])
    """
    products = tokens @ text  # (B, N, 2)
    shares = F.softmax(scale * products[:, :1], dim=-1)  # (B, 1, 2), CLS decides
    weighted = products * (shares / shares.mean(dim=-1, keepdim=True))
    return weighted - weighted.mean(dim=-1, keepdim=True)
