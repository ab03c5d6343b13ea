"""SDP+: SDP plus a trained linear projection at each level.

B images, L levels, P = g * g patches, W width, D embedding, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from src.clip.backbone import Backbone
from src.models.losses import check_loss_weights, segmentation_loss
from src.models.maps import aligned_upsampling, to_grid
from src.models.method import Features, Scores, Targets
from src.models.prompts import Prompts
from src.models.sdp import CLIP_TEMPERATURE, SDP

_SHORTEST = 1e-12  # a token's length is not taken as less, as in torch's normalize


class SDPPlus(SDP):
    """SDP with tuned maps (CLIP-AD, https://arxiv.org/abs/2311.00453, section 3.3).

    Its map is SDP's plus, for each level, the anomalous probability of the projected original patch tokens. Its image
    score takes the CLS term from SDP.

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

    def score(self, features: Features, text: Tensor) -> Scores:
        """Score images by both kinds of tokens, given their text features (B, D, 2)."""
        original, surgery = features["original"], features["surgery"]
        with torch.autocast(original.device.type, enabled=False):
            tuned_map = self.margins(original, text).sigmoid().sum(dim=1)  # (B, H, W)
            return self.scores_of(self.surgery_map(surgery, text) + tuned_map, surgery, text)

    def loss(self, features: Features, text: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Weighted focal plus dice, summed over the levels: `loss`, and its parts as they are, `focal` and `dice`."""
        original = features["original"]
        assert targets.mask is not None
        with torch.autocast(original.device.type, enabled=False):
            margins = self.margins(original, text)
            return segmentation_loss(margins, targets.mask, self.focal_weight, self.dice_weight)._asdict()

    def margins(self, original: Tensor, text: Tensor) -> Tensor:
        """Each level's anomalous logit less its normal one, at the image's size: (B, L, H, W).

        The paper brings two logits to the image's size, with their corners aligned, and takes their softmax. Of two
        classes that is the sigmoid of the difference, and interpolation is linear: one value a pixel is enough.

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
        upsample = aligned_upsampling(grids.shape[-1], self.image_size).to(grids)  # (H, g)
        return upsample @ grids @ upsample.T


class LevelProjections(nn.Module):
    """Brings each level's patch tokens into the joint embedding by a projection of its own.

    The list is called `fc`, so that its state has the names of the reference's checkpoint files.

    Args:
        levels: L.
        width: channels of the tower's tokens (W).
        embed_dim: channels of the joint embedding (D).

    Example:
        >>> import torch
        >>> projected = LevelProjections(levels=2, width=8, embed_dim=4)(torch.zeros(1, 2, 16, 8))
        >>> [tuple(tokens.shape) for tokens in projected]
        [(1, 16, 4), (1, 16, 4)]
    """

    def __init__(self, levels: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(width, embed_dim) for _ in range(levels))

    def forward(self, original: Tensor) -> list[Tensor]:
        """Patch tokens (B, L, P, W) -> L tensors (B, P, D), of any length."""
        return [fc(tokens) for fc, tokens in zip(self.fc, original.unbind(1), strict=True)]
