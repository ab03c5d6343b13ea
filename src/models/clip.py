"""Plain CLIP: which of two texts is a patch more like?

B images, P patches, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.clip.backbone import Backbone
from src.models.maps import check_sigma, gaussian_blur, upsampled
from src.models.method import Features, Frozen, Method, Scores
from src.models.prompts import Prompts
from src.models.similarity import CLIP_SCALE, anomalous_probability
from src.models.text import PromptEnsemble


class CLIP(Method):
    """CLIP (Radford et al., https://arxiv.org/abs/2103.00020) as it is, asked about every patch.

    Its patch tokens were never trained to be like texts: maps are often inverted, which is what the surgery of SDP
    answers.

    Args:
        backbone: the frozen CLIP.
        prompts: the sentences of a class.
        smoothing_sigma: standard deviation of the gaussian over the map, in pixels of the model's image size.
        representative: how a side's sentence embeddings become one vector.
        fusion: how a benchmark fuses the image's probability and the map's maximum: `single` is the former alone.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = CLIP(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> method.text.prepare(["cup"], data_set="mine")
        >>> method(torch.zeros(1, 3, 96, 96), method.text(["cup"])).anomaly_map.shape
        torch.Size([1, 96, 96])
    """

    name = "clip"
    terms = ("cls_score", "map_max")

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts,
        smoothing_sigma: float = 8,
        representative: str = "mean",
        fusion: str = "single",
    ) -> None:
        super().__init__()
        check_sigma(smoothing_sigma)
        self.backbone = backbone
        self.text = PromptEnsemble(backbone, prompts, representative)
        self.smoothing_sigma = smoothing_sigma
        self.fusion = fusion
        self.frozen = Frozen({}, for_scores=["tokens"])

    def features(self, images: Tensor) -> Features:
        """The tower's `tokens` of images (B, 3, H, W): (B, 1+P, D), CLS first."""
        return {"tokens": self.backbone.image_tokens(images)}

    def score(self, features: Features, text: Tensor) -> Scores:
        """Score images by their `tokens` (B, 1+P, D), given their text features (B, D, 2)."""
        with torch.autocast(text.device.type, enabled=False):
            probabilities = anomalous_probability(features["tokens"], text, CLIP_SCALE)  # (B, 1+P)
            raw_map = upsampled(probabilities[:, None, 1:], self.backbone.architecture.image_size)[:, 0]
            anomaly_map = gaussian_blur(raw_map, self.smoothing_sigma)
        terms = {"cls_score": probabilities[:, 0], "map_max": anomaly_map.amax(dim=(1, 2))}
        return Scores(anomaly_map, terms, single_score=terms["cls_score"])
