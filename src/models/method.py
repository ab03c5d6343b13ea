"""What every method is to the rest of the framework.

B images, H x W pixels, D embedding, K reference images of a category.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

Features = Mapping[str, Tensor]


class Scores(NamedTuple):
    """A method's outputs. Each image's depend on that image alone; a set's statistics enter only in the metrics.

    Attributes:
        anomaly_map: (B, H, W), smoothed, at the model's image size; larger is more anomalous, any real number.
        terms: image-level scores by name, (B,) each; larger is more anomalous. A benchmark fuses them over the test
            images of a category by the method's rule.
        single_score: (B,), the score of an image on its own.

    Example:
        >>> import torch
        >>> anomaly_map = torch.tensor([[[0.0, 0.5], [0.25, 1.0]]])
        >>> highest = anomaly_map.amax(dim=(1, 2))
        >>> Scores(anomaly_map, {"map_max": highest}, highest).single_score
        tensor([1.])
    """

    anomaly_map: Tensor
    terms: Mapping[str, Tensor]
    single_score: Tensor


class Targets(NamedTuple):
    """What is known of a batch's images; None where the data does not say.

    Attributes:
        mask: (B, H, W) of {0, 1}.
        label: (B,) of {0, 1}.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[0, 1], [0, 0]]])
        >>> Targets(mask, label=mask.amax(dim=(1, 2))).label
        tensor([1])
    """

    mask: Tensor | None
    label: Tensor | None


class Frozen(NamedTuple):
    """Which of a method's features training does not change, so that they can be kept on disk.

    Attributes:
        settings: what decides them beside the backbone and the images; plain values, as JSON has them.
        for_scores: the names of the features that scoring reads.
        for_loss: the names of those that the loss reads.

    Example:
        >>> frozen = Frozen({"feature_layers": [3, 6]}, for_scores=["surgery"])
        >>> frozen.for_scores, frozen.for_loss
        (['surgery'], ())
    """

    settings: Mapping[str, Any]
    for_scores: Sequence[str]
    for_loss: Sequence[str] = ()


class TextFeatures(nn.Module, ABC):
    """Turns class names into text features; it may have parameters of its own, such as learned prompts."""

    @abstractmethod
    def prepare(self, class_names: Sequence[str], data_set: str) -> None:
        """Get ready for the classes of one data set, before its first batch, on the device of the run.

        Args:
            class_names: every class that batches will ask for.
            data_set: its name, such as `visa`, for a choice that depends on it.
        """

    @abstractmethod
    def forward(self, class_names: Sequence[str]) -> Tensor:
        """Text features of a batch: B class names -> (B, D, 2), unit columns: 0 normal, 1 anomalous."""


class Method(nn.Module, ABC):
    """A zero-shot anomaly detection method: text features and an image in, scores out, in two steps.

    `features` is what an image gives, each of them (B, ...); `score` and `loss` take it from there. A method whose
    features no training changes says so by `frozen`, and they are computed once instead of in every epoch.

    A wrong argument is a ValueError whose message begins with the argument's name.

    Attributes:
        name: short name for files, such as `sdp_plus`.
        text: what turns class names into text features.
        terms: the names of the image-level scores, in the order in which tables show them.
        fusion: how a benchmark fuses the terms, one of `src.metrics.functional.FUSIONS`.
        authors_key: the key under which the authors' checkpoints hold the trained parameters; None if there are none.
        frozen: what the features depend on; None if training changes them. A subclass with other features has to
            say anew what they depend on; of a class outside `src` all options count, whatever it says.
    """

    name: str
    text: TextFeatures
    terms: Sequence[str]
    fusion: str = "single"
    authors_key: str | None = None
    frozen: Frozen | None = None

    def features(self, images: Tensor) -> Features:
        """Features of images (B, 3, H, W), by name. A method that has none of its own gets the images as `image`."""
        return {"image": images}

    @abstractmethod
    def score(self, features: Features, text: Tensor) -> Scores:
        """Score images by their features, given their text features (B, D, 2)."""

    def loss(self, features: Features, text: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The training loss as `loss`, and its parts by name, all scalars; only for methods that train.

        Args:
            features: of B images.
            text: (B, D, 2).
            targets: masks and labels of the images.
        """
        raise NotImplementedError(f"model {self.name} has nothing to train")

    def forward(self, images: Tensor, text: Tensor) -> Scores:
        """Score images (B, 3, H, W), given their text features (B, D, 2)."""
        return self.score(self.features(images), text)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by name: neither the frozen CLIP nor anything that can be computed again."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def from_authors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The trained parameters, by the names here, of what stands under `authors_key` of an authors' checkpoint.

        Raises:
            ValueError: they don't fit; the message begins with what is wrong.
        """
        return dict(state)


class FewShotMethod(Method):
    """A method that can also look at a few normal images of each category, its references.

    What the references give are their `features`, computed as those of a test image and kept by the framework.

    Attributes:
        needs_references: whether it can't do without.
        few_shot_fusion: how a benchmark fuses the terms where there are references; None for `fusion`.
    """

    needs_references: bool = False
    few_shot_fusion: str | None = None

    @abstractmethod
    def score(self, features: Features, text: Tensor, references: Sequence[Features] | None = None) -> Scores:
        """Score images by their features, given their text features (B, D, 2) and what their references gave.

        Args:
            features: of B images.
            text: (B, D, 2).
            references: for each of the B images the features of the K references of its category, (K, ...) each;
                images of one category have the same object. None scores without references.
        """
