"""SDP+: SDP plus a trained linear projection at each level.

B images, P patches, D embedding, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.backbone import Backbone
from src.models.dual_path import FeatureTap, Level
from src.models.losses import dice_loss, focal_loss
from src.models.maps import to_grid
from src.models.method import Scores
from src.models.projections import LevelProjections
from src.models.prompts import Prompts
from src.models.sdp import CLIP_TEMPERATURE, SDP


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
    ) -> None:
        super().__init__(backbone, prompts, feature_layers, feature_tap, smoothing_sigma, representative)
        architecture = backbone.architecture
        self.projections = LevelProjections(len(feature_layers), architecture.width, architecture.embed_dim)

    def forward(self, images: Tensor, text: Tensor) -> Scores:
        """Score images (B, 3, H, W), given their text features (B, D, 2)."""
        levels = self.dual_path(images)
        with torch.autocast(images.device.type, enabled=False):
            tuned = torch.stack([p[:, 1] for p in self.tuned_probabilities(levels, text)]).sum(dim=0)  # (B, H, W)
            return self._score(self.surgery_map(levels, text) + tuned, levels, text)

    def tuned_probabilities(self, levels: Sequence[Level], text: Tensor) -> list[Tensor]:
        """Each level's class probabilities at the image's size: (B, 2, H, W).

        The logits are brought to the image's size with their corners aligned, before the softmax.
        """
        size = (self.image_size, self.image_size)
        probabilities = []
        for tokens in self.projections(levels):
            logits = to_grid(CLIP_TEMPERATURE * tokens @ text)  # (B, 2, g, g)
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)  # (B, 2, H, W)
            probabilities.append(F.softmax(logits, dim=1))
        return probabilities

    def loss(self, images: Tensor, text: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Focal plus dice, summed over the levels: `loss`, and its parts `focal` and `dice`."""
        levels = self.dual_path(images)
        with torch.autocast(images.device.type, enabled=False):
            probabilities = self.tuned_probabilities(levels, text)
            focal = torch.stack([focal_loss(p, masks) for p in probabilities]).sum()
            dice = torch.stack([dice_loss(p[:, 1], masks) for p in probabilities]).sum()
        return {"loss": focal + dice, "focal": focal.detach(), "dice": dice.detach()}
