"""What every method is to the rest of the framework.

B images, H x W pixels, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from datamodules.errors import UserError


class Scores(NamedTuple):
    """A method's outputs. Each image's depend on that image alone; a set's statistics enter only in the metrics.

    Attributes:
        anomaly_map: (B, H, W), smoothed, at the model's image size; larger is more anomalous, any real number.
        cls_score: (B,), the anomalous class's probability from the CLS token, in [0, 1].
        map_max: (B,), the maximum of each anomaly map.
    """

    anomaly_map: Tensor
    cls_score: Tensor
    map_max: Tensor


class Method(nn.Module, ABC):
    """A zero-shot anomaly detection method: text features and an image in, scores out.

    Attributes:
        name: short name for files, such as `sdp_plus`.
        text: module with `prepare(class_names, dbscan)` and `forward(class_names) -> (B, D, 2)`.
    """

    name: str
    text: nn.Module

    @abstractmethod
    def forward(self, images: Tensor, text: Tensor) -> Scores:
        """Score images (B, 3, H, W), given their text features (B, D, 2)."""

    def loss(self, images: Tensor, text: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The training loss as `loss`, and its parts by name, all scalars; only for methods that train.

        Args:
            images: (B, 3, H, W).
            text: (B, D, 2).
            masks: (B, H, W) of {0, 1}.
        """
        raise UserError(f"model {self.name} has nothing to train")

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by name: neither the frozen CLIP nor anything that can be computed again."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
