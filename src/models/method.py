"""What every method is to the rest of the framework.

B images, H x W pixels, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


class TextFeatures(nn.Module, ABC):
    """Turns class names into text features; it may have parameters of its own, such as learned prompts."""

    @abstractmethod
    def prepare(self, class_names: Sequence[str], dbscan: Mapping[str, Any]) -> None:
        """Get ready for the classes of one data set, before its first batch, on the device of the run.

        Args:
            class_names: every class that batches will ask for.
            dbscan: the data set's `eps` and `min_samples`.
        """

    @abstractmethod
    def forward(self, class_names: Sequence[str]) -> Tensor:
        """Text features of a batch: B class names -> (B, D, 2), unit columns: 0 normal, 1 anomalous."""


class Method(nn.Module, ABC):
    """A zero-shot anomaly detection method: text features and an image in, scores out.

    Attributes:
        name: short name for files, such as `sdp_plus`.
        text: what turns class names into text features.
    """

    name: str
    text: TextFeatures

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
