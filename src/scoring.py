"""Photos -> scores and maps, as `src.predict` and the Python API both do it.

B photos, T tiles, S side of the model's input, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.errors import UserError
from src.features.cache import compute_features
from src.models.method import Method, Scores
from src.models.tiles import blend_tiles


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

    def __call__(self, batch: dict[str, Any], text: Tensor) -> tuple[Scores, list[Tensor]]:
        """Score a batch, see `datamodules.photos.collate_photos`.

        Args:
            batch: `image` (B, 3, S, S), and of each photo `tiles` (T, S, S, 3) with `boxes` (T, 4), or None.
            text: (B, D, 2), text features of the photos' categories.

        Returns:
            The scores of the whole photos, and each photo's map (h, w): the model's, or that of its tiles, blended.

        Raises:
            UserError: a score or a map is not finite.
        """
        scores = self._score(batch["image"], text)
        maps = list(scores.anomaly_map.unbind())
        for i, (tiles, boxes) in enumerate(zip(batch["tiles"], batch["boxes"], strict=True)):
            if tiles is not None:
                maps[i] = self._blended(tiles, boxes, text[i : i + 1])
        for path, score, one in zip(batch["image_path"], scores.single_score, maps, strict=True):
            if not (score.isfinite() and one.isfinite().all()):
                raise UserError(f"the scores of {path} by {self.method.name} are not finite; check the weights")
        return scores, maps

    def _score(self, images: Tensor, text: Tensor) -> Scores:
        if self.method.frozen is None:
            return self.method.score(self.method.features(images), text)
        features = compute_features(self.method, images, self.rows, self.dtype)
        return self.method.score({name: values.float() for name, values in features.items()}, text)

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
    resized = F.interpolate(anomaly_map[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]
    return resized.clamp(anomaly_map.min(), anomaly_map.max())  # rounding may lead a little beyond
