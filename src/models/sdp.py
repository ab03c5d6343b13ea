"""SDP: frozen CLIP, staged dual path, feature surgery. Nothing is trained.

B images, L levels, P patches, N tokens (CLS first), D embedding, H x W pixels; the 2 classes are normal and anomalous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from src.clip.architecture import chosen_layers
from src.clip.backbone import Backbone
from src.models.dual_path import DualPath, FeatureTap
from src.models.maps import check_sigma, gaussian_blur, upsampled
from src.models.method import Features, Frozen, Method, Scores
from src.models.prompts import Prompts
from src.models.similarity import CLIP_SCALE, anomalous_probability
from src.models.surgery import surgery_similarity
from src.models.text import DBSCAN, PromptEnsemble


class SDP(Method):
    """Staged Dual-Path (CLIP-AD, https://arxiv.org/abs/2311.00453, section 3).

    Args:
        backbone: the frozen CLIP.
        prompts: the sentences of a class.
        feature_layers: the blocks after which the two paths are read, counted from 1; None for the last block of each
            stage.
        feature_tap: `reference` (the authors' code) or `block_output` (the equations), see `DualPath`.
        smoothing_sigma: standard deviation of the gaussian over the map, in pixels of the model's image size.
        representative: how a side's sentence embeddings become one vector.
        dbscan: its parameters for `dbscan`, by the data set whose classes are embedded, see `PromptEnsemble`.
        fusion: how a benchmark fuses `cls_score` and `map_max`; the paper's is `min_max_sum`.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> sdp = SDP(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]), representative="mean")
        >>> sdp.text.prepare(["cup"], data_set="mine")
        >>> sdp(torch.zeros(1, 3, 96, 96), sdp.text(["cup"])).anomaly_map.shape
        torch.Size([1, 96, 96])
    """

    name = "sdp"
    terms = ("cls_score", "map_max")

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts,
        feature_layers: Sequence[int] | None = None,
        feature_tap: FeatureTap = "reference",
        smoothing_sigma: float = 8,
        representative: str = "dbscan",
        dbscan: Mapping[str, Mapping[str, float]] = DBSCAN,
        fusion: str = "min_max_sum",
    ) -> None:
        super().__init__()
        check_sigma(smoothing_sigma)
        self.feature_layers = chosen_layers(feature_layers, backbone.architecture.quarters, backbone.architecture)
        self.text = PromptEnsemble(backbone, prompts, representative, dbscan)
        self.dual_path = DualPath(backbone, self.feature_layers, feature_tap)
        self.image_size = backbone.architecture.image_size
        self.smoothing_sigma = smoothing_sigma
        self.fusion = fusion
        settings = {"feature_layers": self.feature_layers, "feature_tap": feature_tap}
        self.frozen = Frozen(settings, for_scores=["surgery"])

    def features(self, images: Tensor) -> Features:
        """The levels' `surgery` tokens of images (B, 3, H, W): (B, L, 1+P, D), CLS first."""
        return {"surgery": torch.stack([level.surgery for level in self.dual_path(images)], dim=1)}

    def score(self, features: Features, text: Tensor) -> Scores:
        """Score images by their `surgery` tokens (B, L, 1+P, D), given their text features (B, D, 2)."""
        surgery = features["surgery"]
        with torch.autocast(surgery.device.type, enabled=False):
            return self.scores_of(self.surgery_map(surgery, text), surgery, text)

    def surgery_map(self, surgery: Tensor, text: Tensor) -> Tensor:
        """The levels' anomalous similarities, summed and brought to the image's size, not smoothed: (B, H, W)."""
        similarity = sum_similarities(surgery, text)[:, 1:, 1:]  # (B, P, 1)
        return upsampled(similarity.mT, self.image_size)[:, 0]

    def scores_of(self, raw_map: Tensor, surgery: Tensor, text: Tensor) -> Scores:
        """Smooth a map (B, H, W) and put the image-level terms beside it; alone, an image has their sum."""
        anomaly_map = gaussian_blur(raw_map, self.smoothing_sigma)
        cls_score = anomalous_probability(surgery[:, -1, :1], text, CLIP_SCALE)[:, 0]
        terms = {"cls_score": cls_score, "map_max": anomaly_map.amax(dim=(1, 2))}
        return Scores(anomaly_map, terms, terms["cls_score"] + terms["map_max"])


def sum_similarities(surgery: Tensor, text: Tensor) -> Tensor:
    """Feature surgery at each level, summed over the levels: (B, L, 1+P, D) -> (B, 1+P, 2).

    Example:
        >>> import torch
        >>> tokens = torch.eye(2)  # CLS is as the normal text, the patch as the anomalous one
        >>> sum_similarities(torch.stack([tokens, tokens])[None], torch.eye(2)[None])
        tensor([[[ 1.4621, -1.4621],
                 [-0.5379,  0.5379]]])
    """
    similarities = [surgery_similarity(F.normalize(tokens, dim=-1), text) for tokens in surgery.unbind(1)]
    return torch.stack(similarities).sum(dim=0)
