"""WinCLIP: CLIP's image embedding, computed for every window of patches as if it were an image.

B images, P = g * g patches, s side of a window in patches, n = (g - s + 1)^2 windows, W width, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from src.clip.backbone import Backbone
from src.models.maps import check_sigma, gaussian_blur, upsampled
from src.models.method import Features, Frozen, Method, Scores
from src.models.prompts import Prompts
from src.models.similarity import FIXED_SCALE, anomalous_probability
from src.models.text import ClassMatrices

MOST_WINDOWS = 512  # that go through the tower at once; more are no faster and take more memory


class WinCLIP(Method):
    """Zero-shot WinCLIP (Jeong et al., https://arxiv.org/abs/2303.14814).

    A window's tokens, with CLS in front, go through the whole tower alone. The map is the harmonic mean of the windows'
    scores over the windows that contain a patch, over the scales and over the image's own score.

    Args:
        backbone: the frozen CLIP.
        prompts: the sentences of a class.
        scales: sides of the windows, in patches.
        smoothing_sigma: standard deviation of a gaussian over the map, in pixels; the paper has none.
        fusion: how a benchmark fuses the image's score and the map's maximum; the paper's is `single`, the former.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> method = WinCLIP(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> method.text.prepare(["cup"], data_set="mine")
        >>> method(torch.zeros(1, 3, 96, 96), method.text(["cup"])).anomaly_map.shape
        torch.Size([1, 96, 96])
    """

    name = "winclip"
    terms: Sequence[str] = ("cls_score", "map_max")

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts,
        scales: Sequence[int] = (2, 3),
        smoothing_sigma: float = 0,
        fusion: str = "single",
    ) -> None:
        super().__init__()
        check_sigma(smoothing_sigma)
        grid = backbone.architecture.grid_size
        is_list = isinstance(scales, Sequence) and not isinstance(scales, str)
        if not (is_list and scales and all(isinstance(scale, int) and 1 <= scale <= grid for scale in scales)):
            raise ValueError(f"scales must be a list of numbers from 1 to {grid}, the grid's side, but got {scales}")
        if list(scales) != sorted(set(scales)):
            raise ValueError(f"scales must rise and not repeat, but got {scales}")
        self.backbone = backbone
        self.text = PlainMeanPrompts(backbone, prompts)
        self.scales = list(scales)
        self.smoothing_sigma = smoothing_sigma
        self.fusion = fusion
        for scale in self.scales:
            self.register_buffer(f"windows_{scale}", windows_of(grid, scale), persistent=False)
        names = ["image", *(f"window_{scale}" for scale in self.scales)]
        self.frozen = Frozen({"scales": self.scales}, for_scores=names)

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """The embeddings `image` (B, D) and `window_<s>` (B, n, D) of images (B, 3, H, W)."""
        tokens = self.backbone.embed(images)  # (B, 1+P, W)
        windows = {f"window_{scale}": self.embed_windows(tokens, self.windows(scale)) for scale in self.scales}
        return self.embed_image(self.run_tower(tokens)) | windows

    def embed_image(self, tokens: Tensor) -> dict[str, Tensor]:
        """The embeddings that need no window, of the tower's last tokens (B, 1+P, W)."""
        return {"image": self.backbone.project(tokens[:, 0]).float()}

    def embed_windows(self, tokens: Tensor, windows: Tensor) -> Tensor:
        """Run each window through the tower: tokens (B, 1+P, W), windows (n, s * s) -> (B, n, D).

        The tokens have the positions that they have in the image, and the norm in front of the blocks behind them,
        which is of each token alone.
        """
        count = len(windows)
        cls_token, patches = tokens[:, :1], tokens[:, 1:]
        own = torch.cat([cls_token[:, None].expand(-1, count, -1, -1), patches[:, windows]], dim=2)  # (B, n, 1+s*s, W)
        outputs = [self.run_tower(some)[:, 0] for some in torch.split(own.flatten(0, 1), MOST_WINDOWS)]
        embeddings = self.backbone.project(torch.cat(outputs)).float()
        return embeddings.view(-1, count, embeddings.shape[-1])

    def run_tower(self, tokens: Tensor) -> Tensor:
        """All blocks: (B, N, W), CLS first -> (B, N, W)."""
        for block in self.backbone.blocks:
            tokens = self.backbone.run_block(block, tokens)
        return tokens

    def windows(self, scale: int) -> Tensor:
        """The patches of each window of a scale, see `windows_of`."""
        windows: Tensor = getattr(self, f"windows_{scale}")
        return windows

    def score(self, features: Features, text: Tensor) -> Scores:
        """Score images by their embeddings, given their text features (B, D, 2)."""
        with torch.autocast(text.device.type, enabled=False):
            image_score = self.image_score(features, text)
            return self.scores_of(self.zero_shot_grid(features, text), {"cls_score": image_score}, image_score)

    def image_score(self, features: Features, text: Tensor) -> Tensor:
        """The anomalous probability of the whole image: (B,)."""
        return anomalous_probability(features["image"][:, None], text, FIXED_SCALE)[:, 0]

    def zero_shot_grid(self, features: Features, text: Tensor) -> Tensor:
        """The harmonic mean of the image's score and the maps of all scales: (B, P)."""
        maps = [self.image_score(features, text)[:, None]]  # (B, 1), a constant map
        for scale in self.scales:
            probability = anomalous_probability(features[f"window_{scale}"], text, FIXED_SCALE)  # (B, n)
            maps.append(mean_over_windows(probability, scale))
        inverse: Tensor = sum(1 / one for one in maps)  # type: ignore[assignment]
        return len(maps) / inverse

    def scores_of(self, grid: Tensor, terms: dict[str, Tensor], single_score: Tensor) -> Scores:
        """Bring values of patches (B, P) to the image's size, and put the map's maximum beside the terms."""
        raw_map = upsampled(grid[:, None], self.backbone.architecture.image_size)[:, 0]
        anomaly_map = gaussian_blur(raw_map, self.smoothing_sigma)
        return Scores(anomaly_map, {**terms, "map_max": anomaly_map.amax(dim=(1, 2))}, single_score)


class PlainMeanPrompts(ClassMatrices):
    """A class's matrix from its prompts: the mean of the embeddings of a side as the tower gives them, of any length.

    Args:
        backbone: the frozen CLIP whose text tower embeds the sentences.
        prompts: the sentences of a class.

    Example:
        >>> from src.clip.backbone import find_backbone
        >>> clip = Backbone(find_backbone("demo-clip", None, "package:experiments/demo_backbone/architecture.json"))
        >>> text = PlainMeanPrompts(clip, Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}."]))
        >>> text.matrix_of("cup", "mine").shape
        torch.Size([96, 2])
    """

    def __init__(self, backbone: Backbone, prompts: Prompts) -> None:
        super().__init__()
        self.backbone = backbone
        self.prompts = prompts

    def matrix_of(self, class_name: str, data_set: str) -> Tensor:
        """The means of both sides, brought to unit length: (D, 2)."""
        del data_set
        sides = map(self.backbone.embed_sentences, self.prompts.sentences(class_name))  # normal, anomalous: (K, D) each
        return torch.stack([F.normalize(side.mean(dim=0), dim=0) for side in sides], dim=1)


def windows_of(grid: int, scale: int) -> Tensor:
    """The patches of each window, one patch apart: (n, s * s), windows and patches in row order.

    Example:
        >>> windows_of(grid=3, scale=2)
        tensor([[0, 1, 3, 4],
                [1, 2, 4, 5],
                [3, 4, 6, 7],
                [4, 5, 7, 8]])
    """
    patches = torch.arange(grid * grid).view(grid, grid)
    return patches.unfold(0, scale, 1).unfold(1, scale, 1).reshape(-1, scale * scale)


def mean_over_windows(scores: Tensor, scale: int) -> Tensor:
    """Each patch's harmonic mean of the scores of the windows that contain it: (B, n) -> (B, P).

    As in the public code, what is no number or infinite becomes 0.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.1, 0.3]]).repeat_interleave(2, dim=1)  # two windows above two
        >>> mean_over_windows(scores, scale=2).view(3, 3)[:, 0]  # the middle row is in all four: 2 / (1/0.1 + 1/0.3)
        tensor([0.1000, 0.1500, 0.3000])
    """

    def sums(values: Tensor) -> Tensor:
        """Over the windows that contain a patch: those whose first patch is less than a window's side before it."""
        side = isqrt(values.shape[1])
        padded = F.pad(values.view(-1, 1, side, side), [scale - 1] * 4)
        return F.avg_pool2d(padded, scale, stride=1, divisor_override=1).flatten(1)

    return (sums(torch.ones_like(scores)) / sums(1 / scores)).nan_to_num(nan=0, posinf=0)
