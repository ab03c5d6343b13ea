"""Text features: for a batch of class names, the normal and the anomalous direction.

B images, D embedding, K sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError
from src.clip.backbone import Backbone
from src.models.method import TextFeatures
from src.models.prompts import Prompts
from src.models.representative import REPRESENTATIVES, representative_vector


class PromptEnsemble(TextFeatures):
    """One matrix (D, 2) a class, from its prompts; computed once and looked up for each image.

    Args:
        backbone: the frozen CLIP whose text tower embeds the sentences.
        prompts: the sentences of a class.
        representative: how the K embeddings of a side become one vector.

    Raises:
        UserError: unknown representative method.
    """

    def __init__(self, backbone: Backbone, prompts: Prompts, representative: str) -> None:
        super().__init__()
        if representative not in REPRESENTATIVES:
            raise UserError(
                f"model.representative must be one of {', '.join(REPRESENTATIVES)}, but got '{representative}'"
            )
        self.backbone = backbone
        self.prompts = prompts
        self.representative = representative
        self._matrices: dict[str, Tensor] = {}

    def prepare(self, class_names: Sequence[str], dbscan: Mapping[str, Any]) -> None:
        """Embed the classes of one data set; what was prepared before is dropped."""
        sides = [side for name in class_names for side in self.prompts.sentences(name)]
        embeddings = self.backbone.encode_lists(sides)
        vectors = [representative_vector(side, self.representative, dbscan) for side in embeddings]
        self._matrices = {
            name: torch.stack([normal, anomalous], dim=1)  # (D, 2)
            for name, normal, anomalous in zip(class_names, vectors[::2], vectors[1::2], strict=True)
        }

    def forward(self, class_names: Sequence[str]) -> Tensor:
        """Matrices of a batch's classes: B names -> (B, D, 2), unit columns: 0 normal, 1 anomalous."""
        return torch.stack([self._matrices[name] for name in class_names])
