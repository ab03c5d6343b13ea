"""A method that trains nothing: is a patch more like the anomalous text or like the normal text?"""

from torch import Tensor
from torch.nn import functional as F

from src.clip.backbone import Backbone
from src.models.maps import gaussian_blur, to_grid
from src.models.method import Features, Frozen, Method, Scores
from src.models.prompts import Prompts
from src.models.text import PromptEnsemble


class Likeness(Method):
    """B images, P patches, D embedding, H x W pixels."""

    name = "likeness"
    terms: tuple[str, ...] = ("cls_score", "map_max")
    fusion = "min_max_sum"

    def __init__(self, backbone: Backbone, prompts: Prompts, smoothing_sigma: float = 4) -> None:
        super().__init__()
        self.backbone = backbone
        self.text = PromptEnsemble(backbone, prompts, representative="mean")
        self.frozen = Frozen({}, for_scores=["tokens"], for_loss=["tokens"])
        self.smoothing_sigma = smoothing_sigma

    def features(self, images: Tensor) -> Features:
        """(B, 3, H, W) -> tokens (B, 1+P, D), CLS first."""
        return {"tokens": F.normalize(self.backbone.image_tokens(images), dim=-1)}

    def score(self, features: Features, text: Tensor) -> Scores:
        """Tokens (B, 1+P, D), text (B, D, 2) -> scores."""
        likeness = features["tokens"] @ (text[..., 1:] - text[..., :1])  # (B, 1+P, 1), anomalous minus normal
        grid = to_grid(likeness[:, 1:])  # (B, 1, g, g)
        raw_map = F.interpolate(grid, size=self.backbone.architecture.image_size, mode="bilinear")[:, 0]
        anomaly_map = gaussian_blur(raw_map, self.smoothing_sigma)
        terms = {"cls_score": likeness[:, 0, 0], "map_max": anomaly_map.amax(dim=(1, 2))}
        return Scores(anomaly_map, terms, single_score=terms["cls_score"] + terms["map_max"])
