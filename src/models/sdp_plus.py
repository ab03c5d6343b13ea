"""SDP+: SDP plus a trained linear projection at each level.

B images, L levels, P = g * g patches, W width, D embedding, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.clip.backbone import Backbone
from src.models.losses import check_loss_weights, segmentation_loss
from src.models.maps import aligned_maps
from src.models.memory import level_distances
from src.models.method import Features, FewShotMethod, Scores, Targets
from src.models.projections import LevelProjections, level_margins
from src.models.prompts import Prompts
from src.models.sdp import SDP


class SDPPlus(SDP, FewShotMethod):
    """SDP with tuned maps (CLIP-AD, https://arxiv.org/abs/2311.00453, section 3.3).

    Its map is SDP's plus, for each level, the anomalous probability of the projected original patch tokens. Its image
    score takes the CLS term from SDP.

    Our own extension: with reference images the map also has, for each level, the distance of each original patch token
    from the nearest one of the references, as APRIL-GAN's few-shot map has.

    Args:
        backbone: the frozen CLIP.
        prompts: the sentences of a class.
        focal_weight: of the focal loss; the paper adds both losses as they are.
        dice_weight: of the dice loss.
        **settings: see `SDP`.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = SDPPlus(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]), representative="mean")
        >>> method.text.prepare(["cup"], data_set="mine")
        >>> targets = Targets(mask=torch.zeros(1, 96, 96), label=torch.zeros(1))
        >>> sorted(method.loss(method.features(torch.zeros(1, 3, 96, 96)), method.text(["cup"]), targets))
        ['dice', 'focal', 'loss']
    """

    name = "sdp_plus"
    authors_key = "linear_layers"

    def __init__(
        self, backbone: Backbone, prompts: Prompts, focal_weight: float = 1.0, dice_weight: float = 1.0, **settings: Any
    ) -> None:
        super().__init__(backbone, prompts, **settings)
        check_loss_weights(focal_weight=focal_weight, dice_weight=dice_weight)
        self.focal_weight, self.dice_weight = focal_weight, dice_weight
        width, embed_dim = backbone.architecture.width, backbone.architecture.embed_dim
        self.projections = LevelProjections(len(self.feature_layers), width, embed_dim)
        assert self.frozen is not None
        self.frozen = self.frozen._replace(for_scores=["original", "surgery"], for_loss=["original"])

    def features(self, images: Tensor) -> Features:
        """The levels' `original` patch tokens (B, L, P, W) and `surgery` tokens (B, L, 1+P, D) of (B, 3, H, W)."""
        levels = self.dual_path(images)
        original = torch.stack([level.original[:, 1:] for level in levels], dim=1)  # (B, L, P, W)
        return {"original": original, "surgery": torch.stack([level.surgery for level in levels], dim=1)}

    def score(self, features: Features, text: Tensor, references: Sequence[Features] | None = None) -> Scores:
        """Score images by both kinds of tokens, given their text features (B, D, 2), see `FewShotMethod`."""
        original, surgery = features["original"], features["surgery"]
        with torch.autocast(original.device.type, enabled=False):
            tuned_map = self.margins(original, text).sigmoid().sum(dim=1)  # (B, H, W)
            if references is not None:
                distances = level_distances(original, [own["original"] for own in references])  # (B, L, P)
                tuned_map = tuned_map + aligned_maps(distances, self.image_size).sum(dim=1)
            return self.scores_of(self.surgery_map(surgery, text) + tuned_map, surgery, text)

    def loss(self, features: Features, text: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Weighted focal plus dice, summed over the levels: `loss`, and its parts as they are, `focal` and `dice`."""
        original = features["original"]
        assert targets.mask is not None
        with torch.autocast(original.device.type, enabled=False):
            margins = self.margins(original, text)
            return segmentation_loss(margins, targets.mask, self.focal_weight, self.dice_weight)

    def margins(self, original: Tensor, text: Tensor) -> Tensor:
        """Each level's anomalous logit less its normal one, at the image's size: (B, L, H, W).

        Args:
            original: patch tokens (B, L, P, W).
            text: (B, D, 2).
        """
        return level_margins(self.projections(original), text, self.image_size)

    def from_authors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their list of linear layers has the same names."""
        return {f"projections.{name}": values for name, values in state.items()}
