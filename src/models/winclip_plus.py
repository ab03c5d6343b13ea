"""WinCLIP+: WinCLIP with a few normal images to compare with.

B images, P patches, n windows of a scale, V width of a patch embedding, D embedding, K reference images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from src.clip.backbone import Backbone
from src.models.memory import nearest_distance
from src.models.method import Features, FewShotMethod, Scores
from src.models.prompts import Prompts
from src.models.winclip import WinCLIP, mean_over_windows


class WinCLIPPlus(WinCLIP, FewShotMethod):
    """Few-shot WinCLIP+ (Jeong et al., https://arxiv.org/abs/2303.14814).

    Each window's and each patch's embedding is compared with all those of the reference images. The map is the mean of
    WinCLIP's and of these associations; the image's score is the mean of WinCLIP's and of their maximum.

    Args:
        backbone: the frozen CLIP.
        prompts: the sentences of a class.
        **settings: see `WinCLIP`.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = WinCLIPPlus(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> method.text.prepare(["cup"], data_set="mine")
        >>> good = method.features(torch.rand(2, 3, 96, 96))
        >>> scores = method.score(method.features(torch.zeros(1, 3, 96, 96)), method.text(["cup"]), [good])
        >>> list(scores.terms)
        ['cls_score', 'association_max', 'map_max']
    """

    name = "winclip_plus"
    terms = ("cls_score", "association_max", "map_max")
    needs_references = True

    def __init__(self, backbone: Backbone, prompts: Prompts, **settings: Any) -> None:
        super().__init__(backbone, prompts, **settings)
        assert self.frozen is not None
        self.frozen = self.frozen._replace(for_scores=[*self.frozen.for_scores, "patch"])

    def embed_image(self, tokens: Tensor) -> dict[str, Tensor]:
        """The embeddings `image` (B, D), and `patch` (B, P, V) without projection, of the last tokens (B, 1+P, W)."""
        patch = self.backbone.clip.visual.ln_post(tokens[:, 1:]).float()
        return super().embed_image(tokens) | {"patch": patch}

    def score(self, features: Features, text: Tensor, references: Sequence[Features] | None = None) -> Scores:
        """Score images by their embeddings, given their text features (B, D, 2), see `FewShotMethod`."""
        assert references is not None
        with torch.autocast(text.device.type, enabled=False):
            images = ({name: values[i] for name, values in features.items()} for i in range(len(text)))
            association = torch.stack([self.association(*pair) for pair in zip(images, references, strict=True)])
            image_score = self.image_score(features, text)
            association_max = association.amax(dim=1)  # of (B, P)
            terms = {"cls_score": image_score, "association_max": association_max}
            grid = (self.zero_shot_grid(features, text) + association) / 2
            return self.scores_of(grid, terms, (image_score + association_max) / 2)

    def association(self, features: Features, references: Features) -> Tensor:
        """An image's distances from its references, the mean over patches and scales: features (...) -> (P,)."""
        maps = [half_distance(features["patch"], references["patch"])]
        for scale in self.scales:
            distances = half_distance(features[f"window_{scale}"], references[f"window_{scale}"])  # (n,)
            maps.append(mean_over_windows(distances[None], scale)[0])
        return torch.stack(maps).mean(dim=0)


def half_distance(embeddings: Tensor, references: Tensor) -> Tensor:
    """(1 - cosine) / 2 with the nearest embedding of all references: (N, C), (K, N, C) -> (N,), in [0, 1].

    Example:
        >>> import torch
        >>> half_distance(torch.tensor([[1.0, 0.0], [0.0, -2.0]]), torch.tensor([[[0.0, 3.0]], [[1.0, 0.0]]]))
        tensor([0.0000, 0.5000])
    """
    return nearest_distance(embeddings, references.flatten(0, 1)) / 2
