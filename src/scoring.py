"""A batch -> scores: what the LightningModule and the Python interface share.

B images, H x W pixels, T tiles of a photo, S side of the model's input, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError
from datamodules.references import References
from src.features.cache import compute_features
from src.models.maps import bilinear
from src.models.method import Features, FewShotMethod, Method, Scores
from src.models.tiles import blend_tiles

_MOST_KEPT = 4  # categories whose references' features are kept, unless a batch has more
_ROWS = 8  # references of a batch, if there are so many


def score(method: Method, features: Features, text: Tensor, references: Sequence[Features] | None = None) -> Scores:
    """Score images by their features, with references if there are some.

    Example:
        >>> from src.clip.backbone import Backbone, find_backbone
        >>> from src.models.clip import CLIP
        >>> from src.models.prompts import Prompts
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = CLIP(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> method.text.prepare(["cup"], data_set="mine")
        >>> score(method, method.features(torch.zeros(1, 3, 96, 96)), method.text(["cup"])).anomaly_map.shape
        torch.Size([1, 96, 96])
    """
    if references is None:
        return method.score(features, text)
    assert isinstance(method, FewShotMethod)
    return method.score(features, text, references)


def check_scores(method: Method, scores: Scores, image_paths: Sequence[str]) -> None:
    """Refuse what can't be the scores of B images.

    Args:
        method: that gave them.
        scores: of B images.
        image_paths: of these images, for the message.

    Raises:
        ValueError: a wrong shape or name, for the method's author.
        UserError: a value that is not finite; a ranking with such a score would mean nothing.

    Example:
        >>> from src.models.sdp import SDP
        >>> terms = {"cls_score": torch.ones(1), "map_max": torch.zeros(1)}
        >>> scores = Scores(torch.zeros(1, 9, 9), terms, single_score=torch.ones(1))
        >>> check_scores(SDP, scores, ["a.png"])
    """
    images, name = len(image_paths), method.name
    image_level = {**scores.terms, "single_score": scores.single_score}
    shapes = {key: tuple(value.shape) for key, value in image_level.items()}
    if scores.anomaly_map.ndim != 3 or len(scores.anomaly_map) != images or set(shapes.values()) != {(images,)}:
        raise ValueError(
            f"method {name}: expected an anomaly_map of shape ({images}, H, W) and image-level scores of shape "
            f"({images},), but got {tuple(scores.anomaly_map.shape)} and {shapes}"
        )
    if list(scores.terms) != list(method.terms):
        raise ValueError(f"method {name}: expected terms {list(method.terms)}, but got {list(scores.terms)}")
    flat = scores.anomaly_map.flatten(1)
    finite = torch.stack([flat.amax(dim=1), flat.amin(dim=1), *image_level.values()]).isfinite().all(dim=0)  # (B,)
    if not finite.all():
        raise not_finite(method, image_paths[int(finite.int().argmin())])


def not_finite(method: Method, image_path: str) -> UserError:
    """The error of an image whose scores or map are not finite.

    Example:
        >>> from src.models.sdp import SDP
        >>> print(not_finite(SDP, "a.png"))
        the scores of a.png by sdp are not finite; try trainer.precision=32, or check the weights
    """
    return UserError(
        f"the scores of {image_path} by {method.name} are not finite; try trainer.precision=32, or check the weights"
    )


class Memory:
    """The features of reference images. A category's are computed when it is first asked for, in batches of their own.

    So every process and every part of an evaluation computes the same from the list of files, to the last digit.

    Args:
        method: computes them.
        references: the images.
        dtype: what frozen features are rounded to, as those of other images.
    """

    def __init__(self, method: FewShotMethod, references: References, dtype: torch.dtype) -> None:
        self.method = method
        self.references = references
        self.dtype = dtype
        self._kept: dict[str, Features] = {}

    def of(self, categories: Sequence[str], device: torch.device) -> list[Features]:
        """The features of the references of each image's category, (K, ...) each; images of one share an object.

        Raises:
            UserError: a category has no references, or one can't be read.
        """
        wanted = dict.fromkeys(categories)
        for name in wanted:  # which become the last ones asked for
            self._kept[name] = self._kept.pop(name) if name in self._kept else self._compute(name, device)
        for name in list(self._kept)[: -max(_MOST_KEPT, len(wanted))]:
            del self._kept[name]
        return [self._kept[name] for name in categories]

    def clear(self) -> None:
        """Forget all: the method is on another device, or was trained."""
        self._kept.clear()

    @torch.no_grad()
    def _compute(self, category: str, device: torch.device) -> Features:
        images = self.references.images_of(category).to(device)
        rows = min(len(images), _ROWS)
        batches = [features_of(self.method, some, rows, self.dtype) for some in torch.split(images, rows)]
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def features_of(method: Method, images: Tensor, rows: int, dtype: torch.dtype) -> Features:
    """The features of images in float32; frozen ones as the feature cache would keep them, see `compute_features`.

    Example:
        >>> from src.clip.backbone import Backbone, find_backbone
        >>> from src.models.clip import CLIP
        >>> from src.models.prompts import Prompts
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = CLIP(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> features_of(method, torch.zeros(1, 3, 96, 96), rows=2, dtype=torch.float16)["tokens"].dtype
        torch.float32
    """
    if method.frozen is None:
        return method.features(images)
    return {name: values.float() for name, values in compute_features(method, images, rows, dtype).items()}


class Scorer:
    """Scores photos in batches of one size, so that a photo's last digits don't depend on the others.

    Args:
        method: with its weights, on its device.
        rows: images of a whole batch; a smaller one is filled up.
        dtype: what frozen features are rounded to, as in the feature cache.
        mean: per channel, by which images are normalised.
        std: likewise.
    """

    def __init__(
        self, method: Method, rows: int, dtype: torch.dtype, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.method = method
        self.rows = rows
        self.dtype = dtype
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __call__(
        self, batch: dict[str, Any], text: Tensor, references: Sequence[Features] | None = None
    ) -> tuple[Scores, list[Tensor]]:
        """Score a batch, see `datamodules.photos.collate_photos`.

        Args:
            batch: `image` (B, 3, S, S), and of each photo `tiles` (T, S, S, 3) with `boxes` (T, 4), or None.
            text: (B, D, 2), text features of the photos' categories.
            references: see `FewShotMethod`; there are none where photos have tiles.

        Returns:
            The scores of the whole photos, and each photo's map (h, w): the model's, or that of its tiles, blended.

        Raises:
            UserError: a score or a map is not finite, see `check_scores`.
        """
        scores = self._score(batch["image"], text, references)
        check_scores(self.method, scores, batch["image_path"])
        maps = list(scores.anomaly_map.unbind())
        for i, (tiles, boxes) in enumerate(zip(batch["tiles"], batch["boxes"], strict=True)):
            if tiles is not None:
                maps[i] = self._blended(tiles, boxes, text[i : i + 1])
                if not maps[i].isfinite().all():
                    raise not_finite(self.method, batch["image_path"][i])
        return scores, maps

    def _score(self, images: Tensor, text: Tensor, references: Sequence[Features] | None = None) -> Scores:
        return score(self.method, features_of(self.method, images, self.rows, self.dtype), text, references)

    def _blended(self, tiles: Tensor, boxes: Tensor, text: Tensor) -> Tensor:
        maps = []
        for some in torch.split(tiles, self.rows):
            images = some.to(text.device).permute(0, 3, 1, 2).float().div(255)
            images = (images - self.mean.to(images)) / self.std.to(images)
            maps.append(self._score(images, text.expand(len(some), -1, -1)).anomaly_map)
        return blend_tiles(torch.cat(maps), boxes.to(text.device))


def at_own_size(anomaly_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map (h, w) to an image's own height and width, bilinearly: no value is above the map's highest.

    Example:
        >>> at_own_size(torch.tensor([[0.0, 1.0]]), (1, 4))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
    """
    if anomaly_map.shape == size:
        return anomaly_map
    resized = bilinear(anomaly_map[None, None].float(), size)[0, 0]
    return resized.clamp(anomaly_map.min(), anomaly_map.max())  # rounding may lead a little beyond
