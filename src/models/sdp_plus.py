"""SDP+: SDP plus a trained linear projection at each level.

B images, L levels, P = g * g patches, W width, D embedding, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from src.clip.backbone import Backbone
from src.models.dual_path import FeatureTap
from src.models.losses import check_loss_weights, segmentation_loss
from src.models.maps import to_grid
from src.models.method import Features, Scores
from src.models.projections import LevelProjections
from src.models.prompts import Prompts
from src.models.sdp import CLIP_TEMPERATURE, SDP, stack_surgery

_SHORTEST = 1e-12  # a token's length is not taken as less, as in torch's normalize


class SDPPlus(SDP):
    """SDP with tuned maps (CLIP-AD, https://arxiv.org/abs/2311.00453, section 3.3).

    Its map is SDP's plus, for each level, the anomalous probability of the projected original patch tokens. Its image
    score takes the CLS term from SDP.

    Args:
        backbone: the frozen CLIP.
        prompts: the sentences of a class.
        feature_layers: the blocks after which the two paths are read, counted from 1.
        feature_tap: `reference` or `block_output`, see `DualPath`.
        smoothing_sigma: standard deviation of the gaussian over the map, in pixels of the model's image size.
        representative: how a side's sentence embeddings become one vector.
        focal_weight: of the focal loss; the paper adds both losses as they are.
        dice_weight: of the dice loss.

    Raises:
        UserError: a weight that is negative or no number.
    """

    name = "sdp_plus"
    reads_original = True

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts,
        feature_layers: Sequence[int],
        feature_tap: FeatureTap,
        smoothing_sigma: float,
        representative: str,
        focal_weight: float = 1.0,
        dice_weight: float = 1.0,
    ) -> None:
        super().__init__(backbone, prompts, feature_layers, feature_tap, smoothing_sigma, representative)
        check_loss_weights(focal_weight=focal_weight, dice_weight=dice_weight)
        self.focal_weight, self.dice_weight = focal_weight, dice_weight
        architecture = backbone.architecture
        self.projections = LevelProjections(len(feature_layers), architecture.width, architecture.embed_dim)
        assert self.frozen is not None
        self.frozen = self.frozen._replace(for_scores=["original", "surgery"], for_loss=["original"])

    def features(self, images: Tensor) -> Features:
        """The levels' `original` patch tokens (B, L, P, W) and `surgery` tokens (B, L, 1+P, D) of (B, 3, H, W)."""
        levels = self.dual_path(images)
        original = torch.stack([level.original[:, 1:] for level in levels], dim=1)  # (B, L, P, W)
        return {"original": original, "surgery": stack_surgery(levels)}

    def score(self, features: Features, text: Tensor) -> Scores:
        """Score images by both kinds of tokens, given their text features (B, D, 2)."""
        original, surgery = features["original"], features["surgery"]
        with torch.autocast(original.device.type, enabled=False):
            tuned = self.margins(original, text).sigmoid_().sum(dim=1)  # (B, H, W)
            return self._score(self.surgery_map(surgery, text) + tuned, surgery, text)

    def loss(self, features: Features, text: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Weighted focal plus dice, summed over the levels: `loss`, and its parts as they are, `focal` and `dice`."""
        original = features["original"]
        with torch.autocast(original.device.type, enabled=False):
            margins = self.margins(original, text)
            return segmentation_loss(margins, masks, self.focal_weight, self.dice_weight)._asdict()

    def margins(self, original: Tensor, text: Tensor) -> Tensor:
        """Each level's anomalous logit less its normal one, at the image's size: (B, L, H, W).

        The reference brings two logits to the image's size, with their corners aligned, and takes their softmax. Of
        two classes that is the sigmoid of the difference, and interpolation is linear: one value a pixel is enough.

        Args:
            original: patch tokens (B, L, P, W).
            text: (B, D, 2).
        """
        direction = CLIP_TEMPERATURE * (text[..., 1:] - text[..., :1])  # (B, D, 1)
        margins = [
            tokens @ direction / tokens.norm(dim=-1, keepdim=True).clamp_min(_SHORTEST)
            for tokens in self.projections(original)
        ]  # L of (B, P, 1)
        grids = to_grid(torch.cat(margins, dim=-1))  # (B, L, g, g)
        upsample = _aligned_upsampling(grids.shape[-1], self.image_size).to(grids)  # (H, g)
        return upsample @ grids @ upsample.T


@lru_cache(maxsize=8)
def _aligned_upsampling(source: int, target: int) -> Tensor:
    """Linear interpolation with aligned corners as a matrix (target, source): out = matrix @ signal.

    As matrix products it is faster than torch's, and its gradient does not depend on the order of threads on a GPU.
    """
    with torch.inference_mode(False):  # what is kept has to serve training too
        positions = torch.linspace(0, source - 1, target, dtype=torch.float64)  # of the targets among the sources
        distances = (positions[:, None] - torch.arange(source)).abs()  # (target, source)
        return (1 - distances).clamp_min(0)
