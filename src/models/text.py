"""Text features: for a batch of class names, the normal and the anomalous direction.

B images, D embedding, K sentences.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from src.clip.backbone import Backbone
from src.models.method import TextFeatures
from src.models.prompts import Prompts
from src.models.representative import check_dbscan, check_representative, representative_vector

DBSCAN: Mapping[str, Mapping[str, float]] = {
    "default": {"eps": 0.5, "min_samples": 15},
    "visa": {"eps": 1.5, "min_samples": 25},
}
"""DBSCAN's parameters in the reference, by the data set whose classes are embedded."""


class ClassMatrices(TextFeatures):
    """One matrix (D, 2) a class, computed once and looked up for each image."""

    def __init__(self) -> None:
        super().__init__()
        self._matrices: dict[str, Tensor] = {}

    @abstractmethod
    def matrix_of(self, class_name: str, data_set: str) -> Tensor:
        """The matrix of a class of a data set: (D, 2), unit columns: 0 normal, 1 anomalous."""

    def prepare(self, class_names: Sequence[str], data_set: str) -> None:
        """Embed the classes of one data set; what was prepared before is dropped."""
        self._matrices = {}
        for name in class_names:
            self._matrices[name] = self.matrix_of(name, data_set)

    def forward(self, class_names: Sequence[str]) -> Tensor:
        """Matrices of a batch's classes: B names -> (B, D, 2), unit columns: 0 normal, 1 anomalous."""
        return torch.stack([self._matrices[name] for name in class_names])


class PromptEnsemble(ClassMatrices):
    """A class's matrix from its prompts, one representative of each side (CLIP-AD, section 3.1).

    Args:
        backbone: the frozen CLIP whose text tower embeds the sentences.
        prompts: the sentences of a class.
        representative: how the K embeddings of a side become one vector, one of `REPRESENTATIVES`.
        dbscan: `eps` and `min_samples` by the name of a data set; `default` for all others.

    Raises:
        ValueError: unknown representative, or parameters that DBSCAN can't have.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> prompts = Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."])
        >>> text = PromptEnsemble(clip, prompts, representative="mean")
        >>> text.prepare(["cup", "mug"], data_set="mine")
        >>> text(["mug", "cup", "mug"]).shape
        torch.Size([3, 96, 2])
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts,
        representative: str,
        dbscan: Mapping[str, Mapping[str, float]] = DBSCAN,
    ) -> None:
        super().__init__()
        check_representative(representative)
        check_dbscan(dbscan)
        self.backbone = backbone
        self.prompts = prompts
        self.representative = representative
        self.dbscan = dbscan

    def matrix_of(self, class_name: str, data_set: str) -> Tensor:
        """The representatives of both sides: (D, 2).

        Raises:
            ValueError: DBSCAN finds no cluster.
        """
        dbscan = self.dbscan.get(data_set, self.dbscan["default"])
        sides = map(self.backbone.embed_sentences, self.prompts.sentences(class_name))  # normal, anomalous: (K, D) each
        vectors = [representative_vector(F.normalize(side, dim=-1), self.representative, dbscan) for side in sides]
        return torch.stack(vectors, dim=1)
