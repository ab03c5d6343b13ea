"""What the demo backbone learns: which caption fits an image, and which parts of an image show damage.

B images (N flawless, then their N damaged twins), P = g * g patches, C classes, K sentences a side, D embedding,
L levels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Sides, in patches, of the parts that are asked whether they show damage.
SIDES = (1, 2, 4)
# The slope is fixed: a free one shrinks while evidence is weak, and with it all that the tower could learn from it.
SLOPE = 10.0
# So few damaged pixels that a label would be a guess: of a part of one patch, and of any larger one.
FEW_IN_PATCH, FEW = 8, 20


class Losses(NamedTuple):
    """Scalars: captions of whole images and close-ups; evidence of their parts; twins told apart."""

    captions: Tensor
    parts: Tensor
    twins: Tensor

    def total(self) -> Tensor:
        """Their weighted sum."""
        return 0.5 * self.captions + 2 * self.parts + self.twins


class Objective(nn.Module):
    """The losses and their few parameters, which are needed for training only.

    At every level each patch has a logit for "this patch is damaged": a linear read-out of its original token, of the
    kind that SDP+ trains. The log-sum-exp of a part's logits, for which one strong patch suffices, says whether the
    part shows damage; parts of several sizes cover the image. The second path, which makes SDP's maps,
    is not trained: as in a large CLIP, it has what it has from the captions.

    Args:
        levels: L.
        width: W of the image tower.
        embed_dim: D.
    """

    def __init__(self, levels: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.readouts = nn.ModuleList(nn.Linear(width, embed_dim) for _ in range(levels))
        self.parts = nn.ModuleList(PartEvidence(SIDES, SLOPE) for _ in range(levels))

    def forward(
        self,
        levels: Sequence[Tensor],
        cls_token: Tensor,
        sentences: Tensor,
        scale: Tensor,
        category: Tensor,
        damage: Tensor,
    ) -> Losses:
        """Losses of a batch.

        Args:
            levels: original tokens of B images, L of (B, 1+P, W).
            cls_token: the images' embeddings, (B, D), unit length.
            sentences: (2 C, K, D), unit length; the sides are normal and anomalous of class 0, of class 1, ...
            scale: CLIP's temperature, a scalar.
            category: (B,), class numbers.
            damage: (B, g, g), damaged pixels in each patch.
        """
        sides = F.normalize(sentences.mean(dim=1), dim=-1).view(-1, 2, sentences.shape[-1])  # (C, 2, D)
        text = sides[category].transpose(1, 2)  # (B, D, 2)
        contrast = text[..., 1:] - text[..., :1]  # (B, D, 1)
        read = [readout(level[:, 1:]) for readout, level in zip(self.readouts, levels, strict=True)]
        readouts = [(F.normalize(tokens, dim=-1) @ contrast)[..., 0] for tokens in read]  # (B, P)
        pixels = damage.sum(dim=(1, 2))  # (B,)
        side, known = 2 * category + (pixels > 0).long(), ((pixels == 0) | (pixels >= FEW)).float()
        return Losses(
            caption_loss(cls_token, sentences, scale, side, known),
            torch.stack([part(one, damage) for part, one in zip(self.parts, readouts, strict=True)]).mean(),
            torch.stack([twin_loss(SLOPE * readout, damage) for readout in readouts]).mean(),
        )


class PartEvidence(nn.Module):
    """Binary cross-entropy of "this part shows damage", over all parts of some sizes.

    Args:
        sides: of the square parts, in patches; no larger than the smallest image.
        slope: turns similarities into logits, together with a learned offset a size.
    """

    def __init__(self, sides: Sequence[int], slope: float) -> None:
        super().__init__()
        self.sides, self.slope = tuple(sides), slope
        self.offset = nn.Parameter(torch.full((len(sides),), -3.0))

    def forward(self, similarity: Tensor, damage: Tensor) -> Tensor:
        """Mean over the sizes; similarity (B, P), damage (B, g, g) -> scalar."""
        grid = damage.shape[-1]
        logits = self.slope * similarity.view(-1, 1, grid, grid)  # (B, 1, g, g)
        parts = zip(self.sides, self.offset, strict=True)
        return torch.stack([_evidence(logits, damage[:, None], side, offset) for side, offset in parts]).mean()


def _evidence(logits: Tensor, damage: Tensor, side: int, offset: Tensor) -> Tensor:
    """Binary cross-entropy over parts of `side` x `side` patches, half overlapping; both inputs (B, 1, g, g)."""
    stride, patches = max(1, side // 2), side * side
    largest = logits.amax(dim=(1, 2, 3), keepdim=True).detach()
    exponentials = F.avg_pool2d((logits - largest).exp(), side, stride)
    pooled = exponentials.clamp_min(1e-20).log() + largest + math.log(patches)
    pixels = F.avg_pool2d(damage, side, stride) * patches
    known = ((pixels == 0) | (pixels >= min(FEW, FEW_IN_PATCH * patches))).float()
    losses = F.binary_cross_entropy_with_logits(pooled + offset, (pixels > 0).float(), weight=known, reduction="sum")
    return losses / known.sum().clamp_min(1)


def twin_loss(logits: Tensor, damage: Tensor) -> Tensor:
    """Logistic loss of the claim that a damaged patch is louder than the same patch of the flawless twin.

    Twins share object, pose, light and noise, so this difference is the damage alone.

    Args:
        logits: (2 N, P), flawless first.
        damage: (2 N, g, g).
    """
    flawless, damaged = logits.chunk(2)
    touched = (damage.chunk(2)[1].flatten(1) >= FEW_IN_PATCH).float()  # (N, P)
    return (F.softplus(flawless - damaged) * touched).sum() / touched.sum().clamp_min(1)


def caption_loss(images: Tensor, sentences: Tensor, scale: Tensor, side: Tensor, known: Tensor) -> Tensor:
    """InfoNCE with several right captions an image and several right images a caption, both ways.

    Args:
        images: (B, D), unit length.
        sentences: (2 C, K, D), unit length.
        scale: temperature.
        side: (B,), which side describes the image.
        known: (B,) of {0, 1}: images that count.
    """
    count = sentences.shape[1]
    logits = scale * images @ sentences.flatten(0, 1).T  # (B, 2 C K)
    right = F.one_hot(side, len(sentences)).bool().repeat_interleave(count, dim=1)  # (B, 2 C K)
    right_logits = logits.masked_fill(~right, -torch.inf)
    to_caption = (logits.logsumexp(dim=1) - right_logits.logsumexp(dim=1)) * known
    counting = logits.masked_fill(known[:, None] == 0, -1e4)
    wanted = counting.masked_fill(~right, -1e4)
    described = (right & (known[:, None] > 0)).any(dim=0)  # captions with an image in the batch
    to_image = (counting.logsumexp(dim=0) - wanted.logsumexp(dim=0))[described]
    return to_caption.sum() / known.sum() + 0.5 * to_image.mean()
