# B = images of a batch; H, W = height, width
"""All metrics of a benchmark: per category, and their mean."""

from collections.abc import Sequence
from typing import TypedDict, cast

from torch import Tensor, nn

from src.metrics.image_metrics import ImageMetrics
from src.metrics.pixel_metrics import PixelMetrics

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


class BenchmarkResult(TypedDict):
    """`mean`: metric -> mean over the categories that have it. `categories`: category -> its metrics."""

    mean: dict[str, float]
    categories: dict[str, dict[str, float]]


class BenchmarkMetrics(nn.Module):
    """Image and pixel metrics of several categories.

    Validation and test need an instance each, and `reset` at the start of each round. The scores of all categories are
    kept until then: 4 bytes a pixel (MVTec at 240 x 240: 0.4 GB; VisA at native size about 13 GB).

    Args:
        categories: names, in the order in which results are wanted.

    Raises:
        ValueError: if a category is named twice.
    """

    def __init__(self, categories: Sequence[str]) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self._index = {category: i for i, category in enumerate(self.categories)}
        if len(self._index) != len(self.categories):
            raise ValueError(f"Expected argument `categories` to name each once, but got {list(categories)}.")
        # Lists beside an index: a ModuleDict refuses names such as "type" or "a.b", which folders may well have.
        self.image_metrics = nn.ModuleList(ImageMetrics() for _ in self.categories)
        self.pixel_metrics = nn.ModuleList(PixelMetrics() for _ in self.categories)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._num_images = dict.fromkeys(self.categories, 0)
        self._vanished_masks: dict[str, int] = {}
        for name in self.categories:
            for metric in self._metrics_of(name):
                metric.reset()

    def update(
        self,
        category: Sequence[str],
        cls_score: Tensor,
        map_max: Tensor,
        label: Tensor | None = None,
        anomaly_map: Tensor | Sequence[Tensor] | None = None,
        mask: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        """Add a batch that may mix categories.

        Args:
            category: B names.
            cls_score: (B,) floating point, finite, any range.
            map_max: (B,) floating point, finite, any range.
            label: (B,) {0, 1}; without it there are no image metrics.
            anomaly_map: (B, H, W) floating point, finite, any range, or B maps (H_i, W_i).
            mask: {0, 1}, shapes as the maps; without it there are no pixel metrics.

        Raises:
            ValueError: if a category is unknown, a mask comes without a map, a score is not finite, or shapes, dtypes
                or values don't fit.
        """
        unknown = sorted(set(category) - set(self.categories))
        if unknown:
            raise ValueError(f"Expected argument `category` to be among {list(self.categories)}, but got {unknown}.")
        if mask is not None and anomaly_map is None:
            raise ValueError("Expected argument `anomaly_map` to be given with `mask`, but got None.")
        arguments = {
            "cls_score": cls_score,
            "map_max": map_max,
            "label": label,
            "anomaly_map": anomaly_map,
            "mask": mask,
        }
        for name, value in arguments.items():
            if value is not None and len(value) != len(category):
                raise ValueError(f"Expected argument `{name}` to have length {len(category)}, but got {len(value)}.")

        for name in dict.fromkeys(category):
            image_metrics, pixel_metrics = self._metrics_of(name)
            rows = [row for row, other in enumerate(category) if other == name]
            self._num_images[name] += len(rows)
            if label is not None:
                image_metrics.update(cls_score[rows], map_max[rows], label[rows])
            if mask is not None and anomaly_map is not None:
                pixel_metrics.update(_take(anomaly_map, rows), _take(mask, rows))
                if label is not None:
                    vanished = sum(bool(label[row]) and not bool(mask[row].any()) for row in rows)
                    self._vanished_masks[name] = self._vanished_masks.get(name, 0) + vanished

    def compute(self) -> BenchmarkResult:
        """Return the metrics of each category that got an image, and their mean.

        A category has those of `METRIC_NAMES`, in [0, 1], that its data can give, the thresholds
        `image_F1Max_threshold` and `pixel_F1Max_threshold`, and, where labels and masks are there, `vanished_masks`:
        the number of images labelled anomalous whose mask is empty at the evaluation size. The mean of a metric is
        over the categories that have it; a metric that none has is absent. Nothing is reset.
        """
        categories = {name: self._compute_category(name) for name in self.categories if self._num_images[name]}
        mean = {}
        for metric in METRIC_NAMES:
            values = [result[metric] for result in categories.values() if metric in result]
            if values:
                mean[metric] = sum(values) / len(values)
        return {"mean": mean, "categories": categories}

    def _compute_category(self, name: str) -> dict[str, float]:
        result: dict[str, float] = {}
        for metric in self._metrics_of(name):
            if metric.update_called:  # torchmetrics warns where nothing was added
                result.update(metric.compute())
        if name in self._vanished_masks:
            result["vanished_masks"] = self._vanished_masks[name]
        return result

    def _metrics_of(self, name: str) -> tuple[ImageMetrics, PixelMetrics]:
        index = self._index[name]
        return cast(ImageMetrics, self.image_metrics[index]), cast(PixelMetrics, self.pixel_metrics[index])


def _take(images: Tensor | Sequence[Tensor], rows: list[int]) -> Tensor | list[Tensor]:
    return images[rows] if isinstance(images, Tensor) else [images[row] for row in rows]
