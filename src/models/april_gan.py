"""APRIL-GAN: a trained projection of each level's patch tokens, and a few-shot memory.

B images, L levels, P = g * g patches, W width, D embedding, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from src.clip.architecture import chosen_layers
from src.clip.backbone import Backbone
from src.models.losses import check_loss_weights, segmentation_loss
from src.models.maps import aligned_maps, check_sigma, gaussian_blur
from src.models.memory import level_distances
from src.models.method import Features, FewShotMethod, Frozen, Scores, Targets
from src.models.projections import LevelProjections, level_margins
from src.models.prompts import Prompts
from src.models.similarity import CLIP_SCALE, anomalous_probability
from src.models.text import PromptEnsemble


class AprilGAN(FewShotMethod):
    """APRIL-GAN (Chen et al., https://arxiv.org/abs/2305.17382), zero-shot and few-shot.

    Its map is, for each level, the anomalous probability of the projected patch tokens; references add, for each memory
    level, the distance of each patch token from the nearest one of theirs.

    Args:
        backbone: the frozen CLIP.
        prompts: the sentences of a class.
        feature_layers: the blocks whose tokens are projected, counted from 1; None for those at 1/4, 2/4, 3/4 and 4/4
            of the depth.
        memory_layers: the blocks whose tokens are compared with those of the references; None for `feature_layers`.
        smoothing_sigma: standard deviation of a gaussian over the map, in pixels; the authors have none.
        fusion: how a benchmark fuses `cls_score` and `map_max` without references: `single` is `cls_score` alone.
        few_shot_fusion: the same with references; the authors' is `half_sum_min_max`.
        focal_weight: of the focal loss; the paper adds both losses as they are.
        dice_weight: of the dice loss.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = AprilGAN(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> method.text.prepare(["cup"], data_set="mine")
        >>> features = method.features(torch.zeros(3, 3, 96, 96))
        >>> text, good = method.text(["cup"]), {name: values[1:] for name, values in features.items()}
        >>> image = {name: values[:1] for name, values in features.items()}
        >>> zero_shot, few_shot = method.score(image, text), method.score(image, text, references=[good])
        >>> (few_shot.anomaly_map - zero_shot.anomaly_map).abs().max() < 1e-4  # it is equal to its references
        tensor(True)
    """

    name = "april_gan"
    terms = ("cls_score", "map_max")
    authors_key = "trainable_linearlayer"

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts,
        feature_layers: Sequence[int] | None = None,
        memory_layers: Sequence[int] | None = None,
        smoothing_sigma: float = 0,
        fusion: str = "single",
        few_shot_fusion: str = "half_sum_min_max",
        focal_weight: float = 1.0,
        dice_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_sigma(smoothing_sigma)
        check_loss_weights(focal_weight=focal_weight, dice_weight=dice_weight)
        architecture = backbone.architecture
        self.feature_layers = chosen_layers(feature_layers, architecture.quarters, architecture)
        self.memory_layers = chosen_layers(memory_layers, self.feature_layers, architecture, "memory_layers")
        self.backbone = backbone
        self.text = PromptEnsemble(backbone, prompts, representative="mean")
        self.projections = LevelProjections(len(self.feature_layers), architecture.width, architecture.embed_dim)
        self.smoothing_sigma = smoothing_sigma
        self.fusion, self.few_shot_fusion = fusion, few_shot_fusion
        self.focal_weight, self.dice_weight = focal_weight, dice_weight
        # Tokens that are both projected and compared are kept once.
        self.memory = "tokens" if self.memory_layers == self.feature_layers else "memory"
        settings = {"feature_layers": self.feature_layers, "memory_layers": self.memory_layers}
        self.frozen = Frozen(settings, for_scores=sorted({"image", "tokens", self.memory}), for_loss=["tokens"])

    def features(self, images: Tensor) -> Features:
        """The `image` (B, D) of images (B, 3, H, W), and the patch `tokens` of their levels (B, L, P, W).

        Where the memory has other levels, their patch tokens are called `memory`.
        """
        depth = self.backbone.architecture.depth
        outputs = self.backbone.block_outputs(images, {*self.feature_layers, *self.memory_layers, depth})
        return {
            "image": self.backbone.project(outputs[depth][:, 0]).float(),
            **{
                name: torch.stack([outputs[layer][:, 1:] for layer in layers], dim=1).float()
                for name, layers in ((self.memory, self.memory_layers), ("tokens", self.feature_layers))
            },
        }

    def score(self, features: Features, text: Tensor, references: Sequence[Features] | None = None) -> Scores:
        """Score images by their features, given their text features (B, D, 2), see `FewShotMethod`."""
        with torch.autocast(text.device.type, enabled=False):
            raw_map = self.margins(features["tokens"], text).sigmoid().sum(dim=1)  # (B, H, W)
            if references is not None:
                raw_map = raw_map + self.memory_map(features[self.memory], [own[self.memory] for own in references])
            anomaly_map = gaussian_blur(raw_map, self.smoothing_sigma)
            probability = anomalous_probability(features["image"][:, None], text, CLIP_SCALE)[:, 0]  # (B,)
        map_max = anomaly_map.amax(dim=(1, 2))
        single_score = probability if references is None else (probability + map_max) / 2
        return Scores(anomaly_map, {"cls_score": probability, "map_max": map_max}, single_score)

    def loss(self, features: Features, text: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Weighted focal plus dice, summed over the levels: `loss`, and its parts as they are, `focal` and `dice`."""
        assert targets.mask is not None
        with torch.autocast(text.device.type, enabled=False):
            margins = self.margins(features["tokens"], text)
            return segmentation_loss(margins, targets.mask, self.focal_weight, self.dice_weight)

    def margins(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Each level's anomalous logit less its normal one, at the image's size: (B, L, P, W) -> (B, L, H, W)."""
        return level_margins(self.projections(tokens), text, self.backbone.architecture.image_size)

    def memory_map(self, tokens: Tensor, references: list[Tensor]) -> Tensor:
        """Distances from the references' tokens, brought to the image's size and summed over the levels: (B, H, W)."""
        distances = level_distances(tokens, references)  # (B, L, P)
        return aligned_maps(distances, self.backbone.architecture.image_size).sum(dim=1)

    def from_authors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their list of linear layers has the same names."""
        return {f"projections.{name}": values for name, values in state.items()}
