# B = images of a batch; H, W = height, width
"""All metrics of a benchmark: per category, and their mean."""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn
from torchmetrics.utilities import rank_zero_warn

from src.metrics.exchange import is_shared, summed
from src.metrics.image_metrics import ImageMetrics
from src.metrics.pixel_metrics import PIXEL_ERRORS, PixelMetrics

METRIC_NAMES = (
    "image_AUROC",
    "image_AP",
    "image_F1Max",
    "pixel_AUROC",
    "pixel_AP",
    "pixel_F1Max",
    "pixel_AUPRO",
)
"""The metrics that are averaged over the categories, in the order they are shown."""


BYTES_A_PIXEL = 12
"""What the exact pixel metrics of a category take at most, while they are computed."""

TOLERABLE_ERROR = 1e-4
"""Of a histogram's metric; above it there is a warning."""


class BenchmarkResult(TypedDict):
    """`mean`: metric -> mean over the categories that have it. `categories`: category -> its metrics."""

    mean: dict[str, float]
    categories: dict[str, dict[str, float]]


class _Counts(NamedTuple):
    """What there is of a category; the sums over several processes say what there is in any of them."""

    images: int
    image_parts: int
    pixel_parts: int
    vanished_parts: int
    vanished_masks: int
    empty_parts: int
    empty_masks: int


class BenchmarkMetrics(nn.Module):
    """Image and pixel metrics of several categories.

    Validation and test need an instance each, and `reset` at the start of each round. A category's scores are kept, 4
    bytes a pixel, until all its images were seen, if their number is known, and until `reset` otherwise and where
    several processes share the images (MVTec at 240 x 240: 0.4 GB in all; VisA at native size about 13 GB).

    Args:
        categories: names, in the order in which results are wanted.
        num_images: how many images of each category will come. A category is computed and forgotten with its last one.
        memory_gb: what the pixel metrics of one category may take, in 10^9 bytes; beyond it they come from a histogram,
            of constant size, and with the bounds of their errors. None for any amount.

    Attributes:
        num_images: how many images of each category were seen, in this process.
        vanished_masks: of each category with labels and masks, how many masks are empty though the label is not.
        empty_masks: of each category of which it is known, how many of such masks were empty from the start; they are
            not among those that vanished.
        finished: the results of categories whose scores are gone.

    Raises:
        ValueError: if a category is named twice.
    """

    def __init__(
        self,
        categories: Sequence[str],
        num_images: Mapping[str, int] | None = None,
        memory_gb: float | None = None,
    ) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self.expected_images = dict(num_images or {})
        self.memory_gb = memory_gb
        self._index = {category: i for i, category in enumerate(self.categories)}
        if len(self._index) != len(self.categories):
            raise ValueError(f"Expected argument `categories` to name each once, but got {list(categories)}.")
        max_pixels = None if memory_gb is None else int(memory_gb * 1e9 / BYTES_A_PIXEL)
        # Lists beside an index: a ModuleDict refuses names such as "type" or "a.b", which folders may well have.
        self.image_metrics = nn.ModuleList(ImageMetrics() for _ in self.categories)
        self.pixel_metrics = nn.ModuleList(PixelMetrics(max_pixels) for _ in self.categories)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.num_images = dict.fromkeys(self.categories, 0)
        self.vanished_masks: dict[str, int] = {}
        self.empty_masks: dict[str, int] = {}
        self.finished: dict[str, dict[str, float]] = {}
        for name in self.categories:
            self._forget(name)

    def update(
        self,
        category: Sequence[str],
        cls_score: Tensor,
        map_max: Tensor,
        label: Tensor | None = None,
        anomaly_map: Tensor | Sequence[Tensor] | None = None,
        mask: Tensor | Sequence[Tensor] | None = None,
        mask_is_empty: Sequence[bool] | None = None,
    ) -> None:
        """Add a batch that may mix categories.

        Args:
            category: B names.
            cls_score: (B,) floating point, finite, any range.
            map_max: (B,) floating point, finite, any range.
            label: (B,) {0, 1}; without it there are no image metrics.
            anomaly_map: (B, H, W) floating point, finite, any range, or B maps (H_i, W_i).
            mask: {0, 1}, shapes as the maps; without it there are no pixel metrics.
            mask_is_empty: B times whether an anomalous image has a mask that marks nothing at its own size either; None
                if it is not known.

        Raises:
            ValueError: if a category is unknown or already complete, a mask comes without a map, a score is not finite,
                or shapes, dtypes or values don't fit.
        """
        unknown = sorted(set(category) - set(self.categories))
        if unknown:
            raise ValueError(f"Expected argument `category` to be among {list(self.categories)}, but got {unknown}.")
        complete = sorted(set(category) & set(self.finished))
        if complete:
            raise ValueError(f"Expected argument `category` to have images left to come, but got {complete}.")
        if mask is not None and anomaly_map is None:
            raise ValueError("Expected argument `anomaly_map` to be given with `mask`, but got None.")
        arguments = {
            "cls_score": cls_score,
            "map_max": map_max,
            "label": label,
            "anomaly_map": anomaly_map,
            "mask": mask,
            "mask_is_empty": mask_is_empty,
        }
        for name, value in arguments.items():
            if value is not None and len(value) != len(category):
                raise ValueError(f"Expected argument `{name}` to have length {len(category)}, but got {len(value)}.")

        for name in dict.fromkeys(category):
            image_metrics, pixel_metrics = self.metrics_of(name)
            rows = [row for row, other in enumerate(category) if other == name]
            self.num_images[name] += len(rows)
            if label is not None:
                image_metrics.update(cls_score[rows], map_max[rows], label[rows])
            if mask is not None and anomaly_map is not None:
                was_exact = pixel_metrics.is_exact
                pixel_metrics.update(_take(anomaly_map, rows), _take(mask, rows))
                if was_exact and not pixel_metrics.is_exact:
                    _warn_of_histogram(name)
                if label is not None:
                    empty = sum(mask_is_empty[row] for row in rows) if mask_is_empty else 0
                    vanished = sum(bool(label[row]) and not bool(mask[row].any()) for row in rows) - empty
                    self.vanished_masks[name] = self.vanished_masks.get(name, 0) + vanished
                    if mask_is_empty:
                        self.empty_masks[name] = self.empty_masks.get(name, 0) + empty
            if self.num_images[name] == self.expected_images.get(name) and not is_shared():
                self.finish(name)

    def compute(self) -> BenchmarkResult:
        """Return the metrics of each category that got an image, and their mean.

        A category has those of `METRIC_NAMES`, in [0, 1], that its data can give, the thresholds
        `image_F1Max_threshold` and `pixel_F1Max_threshold`, and, where labels and masks are there, `vanished_masks`:
        the number of images labelled anomalous whose mask is empty at the evaluation size, and `empty_masks`: of those
        whose mask was empty from the start, if that is known, which are not among the former. A category whose pixel
        metrics come from a histogram has `PIXEL_ERRORS` too: how far off each can be. The mean of a metric is over the
        categories that have it; a metric that none has is absent. Nothing is reset.

        Several processes get the same result, that of all their images; each of them has to call this.
        """
        counts = summed(
            torch.tensor([self._counts(name) for name in self.categories]).reshape(-1, len(_Counts._fields))
        ).tolist()
        categories = {
            name: self.finished[name] if name in self.finished else self._compute_category(name, _Counts(*own))
            for name, own in zip(self.categories, counts, strict=True)
            if own[0]
        }
        mean = {}
        for metric in METRIC_NAMES:
            values = [result[metric] for result in categories.values() if metric in result]
            if values:
                mean[metric] = sum(values) / len(values)
        return {"mean": mean, "categories": categories}

    def finish(self, name: str) -> None:
        """Compute a category and let go of its scores: no image of it is to come, here or in another process."""
        self.finished[name] = self._compute_category(name, self._counts(name))
        self._forget(name)

    def _counts(self, name: str) -> _Counts:
        image_metrics, pixel_metrics = self.metrics_of(name)
        return _Counts(
            self.num_images[name],
            len(image_metrics.label),
            len(pixel_metrics.normal_scores) + len(pixel_metrics.histogram),
            int(name in self.vanished_masks),
            self.vanished_masks.get(name, 0),
            int(name in self.empty_masks),
            self.empty_masks.get(name, 0),
        )

    def _compute_category(self, name: str, counts: _Counts) -> dict[str, float]:
        result: dict[str, float] = {}
        image_metrics, pixel_metrics = self.metrics_of(name)
        with warnings.catch_warnings():
            # A process without an image of the category has to join all the same.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric .* was called before")
            if counts.image_parts:
                result |= image_metrics.compute()
            if counts.pixel_parts:
                result |= pixel_metrics.compute()
        if counts.vanished_parts:
            result["vanished_masks"] = counts.vanished_masks
        if counts.empty_parts:
            result["empty_masks"] = counts.empty_masks
        _warn_of_errors(name, result)
        return result

    def _forget(self, name: str) -> None:
        for metric in self.metrics_of(name):
            metric.reset()

    def metrics_of(self, name: str) -> tuple[ImageMetrics, PixelMetrics]:
        """Return the metrics of a category."""
        index = self._index[name]
        return cast(ImageMetrics, self.image_metrics[index]), cast(PixelMetrics, self.pixel_metrics[index])


def _warn_of_histogram(name: str) -> None:
    rank_zero_warn(
        f"{name}: its maps exceed the memory for exact pixel metrics, so they go to a histogram; the result says how "
        "far off it can be"
    )


def _warn_of_errors(name: str, result: Mapping[str, float]) -> None:
    large = [f"{error} {result[error]:.1g}" for error in PIXEL_ERRORS if result.get(error, 0.0) > TOLERABLE_ERROR]
    if large:
        rank_zero_warn(
            f"{name}: the histogram is too coarse for its scores ({', '.join(large)}); raise metrics_memory_gb"
        )


def _take(images: Tensor | Sequence[Tensor], rows: list[int]) -> Tensor | list[Tensor]:
    return images[rows] if isinstance(images, Tensor) else [images[row] for row in rows]
