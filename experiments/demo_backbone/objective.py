"""What the demo backbone learns: which caption fits an image, and weakly where an image is anomalous.

B images, P patches, C classes, K sentences a side, D embedding, L levels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.dual_path import Level
from src.models.projections import LevelProjections
from src.models.surgery import surgery_similarity

FEWEST_PATCHES = 16


class Losses(NamedTuple):
    """Scalars: captions; evidence from the summed map, each level and each read-out; agreement with close-ups."""

    captions: Tensor
    summed: Tensor
    levels: Tensor
    readout: Tensor
    agreement: Tensor

    def total(self) -> Tensor:
        """Their weighted sum."""
        return 0.5 * self.captions + self.summed + 0.5 * self.levels + self.readout + 2 * self.agreement


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
        # What turns similarities into logits: the summed map's, each level's, each read-out's. Slopes are fixed: free
        # ones shrink while the evidence is still weak, and with them everything that the towers could learn from it.
        self.register_buffer("slope", torch.tensor([10.0] + [20.0] * levels + [10.0] * levels))
        self.offset = nn.Parameter(torch.full((1 + 2 * levels,), -3.0))

    def forward(
        self,
        levels: list[Level],
        sentences: Tensor,
        scale: Tensor,
        category: Tensor,
        label: Tensor,
        known: Tensor,
        closeups: list[Level] | None = None,
    ) -> Losses:
        """Losses of a batch.

        Args:
            levels: of B images.
            sentences: (2 C, K, D), unit length; the sides are normal and anomalous of class 0, of class 1, ...
            scale: CLIP's temperature, a scalar.
            category: (B,), class numbers.
            label: (B,) of {0, 1}.
            known: (B,) of {0, 1}: whether the label counts.
            closeups: of the same images cut into n * n close-ups, (n * n * B, ...), all first close-ups first.
        """
        sides = F.normalize(sentences.mean(dim=1), dim=-1).view(-1, 2, sentences.shape[-1])  # (C, 2, D)
        text = sides[category].transpose(1, 2)  # (B, D, 2)
        similarities = self._similarities(levels, text)
        evidence = [self._evidence(number, one, label, known) for number, one in enumerate(similarities)]
        cls_token = F.normalize(levels[-1].surgery[:, 0], dim=-1)  # (B, D)
        captions = caption_loss(cls_token, sentences, scale, 2 * category + label.long(), known)
        count = len(levels)
        agreement = captions.new_zeros(()) if closeups is None else self._agreement(similarities, closeups, text)
        per_level, per_readout = evidence[1 : 1 + count], evidence[1 + count :]
        return Losses(captions, evidence[0], torch.stack(per_level).mean(), torch.stack(per_readout).mean(), agreement)

    def _similarities(self, levels: list[Level], text: Tensor) -> list[Tensor]:
        """How anomalous each patch is, (B, P): by the summed map, by each level's, by each level's read-out."""
        surgery = [surgery_similarity(F.normalize(level.surgery, dim=-1), text)[:, 1:, 1] for level in levels]
        contrast = text[..., 1:] - text[..., :1]  # (B, D, 1)
        readout = [(tokens @ contrast)[..., 0] for tokens in self.readout(levels)]
        return [torch.stack(surgery).sum(dim=0), *surgery, *readout]

    def _agreement(self, similarities: list[Tensor], closeups: list[Level], text: Tensor) -> Tensor:
        """Cross-entropy of what patches say in the whole image, and what they say when only a close-up is seen.

        Attention lets a patch report a defect that lies elsewhere; in a close-up there is no elsewhere.
        """
        cuts = math.isqrt(len(closeups[0].original) // len(text))
        with torch.no_grad():
            told = self._similarities(closeups, text.repeat(cuts**2, 1, 1))
        losses = []
        for number, (whole, close) in enumerate(zip(similarities, told, strict=True)):
            target = join_closeups(close, cuts)  # (B, P)
            logits, wanted = (self.slope[number] * one + self.offset[number].detach() for one in (whole, target))
            losses.append(F.binary_cross_entropy_with_logits(logits, wanted.sigmoid()))
        return losses[0] + torch.stack(losses[1:]).mean()

    def _evidence(self, number: int, similarity: Tensor, label: Tensor, known: Tensor) -> Tensor:
        """Binary cross-entropy of an image's label, given its patches' similarities (B, P)."""
        patches = self.slope[number] * similarity + self.offset[number]  # (B, P)
        # A close-up of 16 patches and an image of 144 start from the same logit.
        logits = patches.logsumexp(dim=1) - math.log(patches.shape[1] / FEWEST_PATCHES)  # (B,)
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


def join_closeups(values: Tensor, cuts: int) -> Tensor:
    """Patch values of n * n close-ups (n * n * B, p * p) as those of whole images (B, n * p * n * p)."""
    side = math.isqrt(values.shape[1])
    grid = values.view(cuts, cuts, -1, side, side).permute(2, 0, 3, 1, 4)  # (B, n, p, n, p)
    return grid.reshape(grid.shape[0], -1)
