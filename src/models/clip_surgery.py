"""CLIP Surgery: one second path of v-v attention beside the last blocks, and feature surgery. Nothing is trained.

B images, P patches, D embedding; the 2 classes are normal and anomalous.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from src.clip.backbone import Backbone
from src.models.maps import check_sigma, gaussian_blur, upsampled
from src.models.method import Features, Frozen, Method, Scores
from src.models.prompts import Prompts
from src.models.similarity import CLIP_SCALE, anomalous_probability
from src.models.surgery import surgery_similarity
from src.models.text import PromptEnsemble
from src.models.value_path import ValuePath

SHARE_SCALE = 2.0  # of CLS's decision between the classes


class CLIPSurgery(Method):
    """CLIP Surgery (Li et al., https://arxiv.org/abs/2304.05653), asked about normal and anomalous.

    It is SDP in a single stage: one level, after the last block. The second path is beside the last blocks only and
    starts as the input of the first of them.

    Args:
        backbone: the frozen CLIP.
        prompts: the sentences of a class.
        surgery_blocks: how many of the last blocks have the second path; None for half of them, the authors' 6 of 12.
        smoothing_sigma: standard deviation of the gaussian over the map, in pixels of the model's image size.
        representative: how a side's sentence embeddings become one vector.
        fusion: how a benchmark fuses `cls_score` and `map_max`; as SDP's, `min_max_sum`.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = CLIPSurgery(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> method.text.prepare(["cup"], data_set="mine")
        >>> method(torch.zeros(1, 3, 96, 96), method.text(["cup"])).anomaly_map.shape
        torch.Size([1, 96, 96])
    """

    name = "clip_surgery"
    terms = ("cls_score", "map_max")

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts,
        surgery_blocks: int | None = None,
        smoothing_sigma: float = 8,
        representative: str = "mean",
        fusion: str = "min_max_sum",
    ) -> None:
        super().__init__()
        check_sigma(smoothing_sigma)
        depth = backbone.architecture.depth
        blocks = (depth + 1) // 2 if surgery_blocks is None else surgery_blocks
        if not 1 <= blocks <= depth:
            raise ValueError(f"surgery_blocks must be from 1 to {depth}, but got {surgery_blocks}")
        self.backbone = backbone
        self.value_path = ValuePath(backbone, blocks, layers=[depth])
        self.text = PromptEnsemble(backbone, prompts, representative)
        self.smoothing_sigma = smoothing_sigma
        self.fusion = fusion
        self.frozen = Frozen({"surgery_blocks": blocks}, for_scores=["tokens"])

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """The `tokens` of images (B, 3, H, W): the second path's patches behind the original CLS, (B, 1+P, D)."""
        (second,), original = self.value_path(images)
        return {"tokens": self.backbone.project(torch.cat([original[:, :1], second[:, 1:]], dim=1)).float()}

    def score(self, features: Features, text: Tensor) -> Scores:
        """Score images by their `tokens` (B, 1+P, D), given their text features (B, D, 2)."""
        tokens = features["tokens"]
        with torch.autocast(text.device.type, enabled=False):
            similarity = surgery_similarity(F.normalize(tokens, dim=-1), text, SHARE_SCALE)[:, 1:, 1:]  # (B, P, 1)
            raw_map = upsampled(similarity.mT, self.backbone.architecture.image_size)[:, 0]
            anomaly_map = gaussian_blur(raw_map, self.smoothing_sigma)
            cls_score = anomalous_probability(tokens[:, :1], text, CLIP_SCALE)[:, 0]
            terms = {"cls_score": cls_score, "map_max": anomaly_map.amax(dim=(1, 2))}
        return Scores(anomaly_map, terms, terms["cls_score"] + terms["map_max"])
