"""What the demo backbone learns: which caption fits an image, and weakly where an image is anomalous.

B images, P patches, C classes, K sentences a side, D embedding, L levels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.dual_path import Level
from src.models.projections import LevelProjections
from src.models.surgery import surgery_similarity


class Losses(NamedTuple):
    """Scalars: captions, evidence from the summed map, from each level, and from linear read-outs."""

    captions: Tensor
    summed: Tensor
    levels: Tensor
    readout: Tensor

    def total(self) -> Tensor:
        """Their weighted sum."""
        return self.captions + self.summed + 0.5 * self.levels + 0.5 * self.readout


class Objective(nn.Module):
    """The losses and their few parameters, which are needed for training only.

    Weak evidence: every patch has a logit for "this patch is anomalous"; their log-sum-exp is the image's, and is
    compared with the image's label. Nothing says where in the image.

    Args:
        levels: L.
        width: W of the image tower.
        embed_dim: D.
    """

    def __init__(self, levels: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.readout = LevelProjections(levels, width, embed_dim)
        # Slope and offset that turn similarities into logits: the summed map's, each level's, each read-out's.
        self.log_slope = nn.Parameter(torch.full((1 + 2 * levels,), 10.0).log())
        self.offset = nn.Parameter(torch.full((1 + 2 * levels,), -5.0))

    def forward(
        self, levels: list[Level], sentences: Tensor, scale: Tensor, category: Tensor, label: Tensor, known: Tensor
    ) -> Losses:
        """Losses of a batch.

        Args:
            levels: of B images.
            sentences: (2 C, K, D), unit length; the sides are normal and anomalous of class 0, of class 1, ...
            scale: CLIP's temperature, a scalar.
            category: (B,), class numbers.
            label: (B,) of {0, 1}.
            known: (B,) of {0, 1}: whether the label counts.
        """
        sides = F.normalize(sentences.mean(dim=1), dim=-1).view(-1, 2, sentences.shape[-1])  # (C, 2, D)
        text = sides[category].transpose(1, 2)  # (B, D, 2)
        surgery = [surgery_similarity(F.normalize(level.surgery, dim=-1), text)[:, 1:, 1] for level in levels]  # (B, P)
        contrast = text[..., 1:] - text[..., :1]  # (B, D, 1)
        readout = [(tokens @ contrast)[..., 0] for tokens in self.readout(levels)]
        evidence = [
            self._evidence(number, similarity, label, known)
            for number, similarity in enumerate([torch.stack(surgery).sum(dim=0), *surgery, *readout])
        ]
        cls_token = F.normalize(levels[-1].surgery[:, 0], dim=-1)  # (B, D)
        captions = caption_loss(cls_token, sentences, scale, 2 * category + label.long(), known)
        count = len(levels)
        per_level, per_readout = evidence[1 : 1 + count], evidence[1 + count :]
        return Losses(
            captions,
            evidence[0],
            torch.stack(per_level).mean(),
            torch.stack(per_readout).mean(),
        )

    def _evidence(self, number: int, similarity: Tensor, label: Tensor, known: Tensor) -> Tensor:
        """Binary cross-entropy of an image's label, given its patches' similarities (B, P)."""
        logits = (self.log_slope[number].exp() * similarity + self.offset[number]).logsumexp(dim=1)  # (B,)
        return F.binary_cross_entropy_with_logits(logits, label, weight=known)


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
