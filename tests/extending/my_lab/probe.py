"""A method that trains: a linear layer says of each patch whether it is anomalous."""

from torch import Tensor, nn
from torch.nn import functional as F

from my_lab.likeness import Likeness
from src.clip.backbone import Backbone
from src.models.maps import to_grid
from src.models.method import Features, Scores, Targets
from src.models.prompts import Prompts


class Probe(Likeness):
    """`Likeness` gives the frozen tokens. The layer is all that trains, since CLIP's parameters ask for no gradient."""

    name = "probe"
    terms = ("map_max",)
    fusion = "single"

    def __init__(self, backbone: Backbone, prompts: Prompts) -> None:
        super().__init__(backbone, prompts)
        self.layer = nn.Linear(backbone.architecture.embed_dim, 1)

    def logits(self, features: Features) -> Tensor:
        """Tokens (B, 1+P, D) -> (B, H, W)."""
        grid = to_grid(self.layer(features["tokens"][:, 1:]))  # (B, 1, g, g)
        return F.interpolate(grid, size=self.backbone.architecture.image_size, mode="bilinear")[:, 0]

    def score(self, features: Features, text: Tensor) -> Scores:
        """An image's score is the largest probability of its map."""
        anomaly_map = self.logits(features).sigmoid()
        map_max = anomaly_map.amax(dim=(1, 2))
        return Scores(anomaly_map, {"map_max": map_max}, single_score=map_max)

    def loss(self, features: Features, text: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The cross-entropy of all pixels, with the masks (B, H, W)."""
        assert targets.mask is not None  # training data without masks is refused before
        return {"loss": F.binary_cross_entropy_with_logits(self.logits(features), targets.mask.float())}
