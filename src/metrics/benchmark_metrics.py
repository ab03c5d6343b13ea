# B = images of a batch; H, W = height, width
"""All metrics of a benchmark: per category, and their mean."""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from src.metric_names import DECISION_NAMES, METRIC_NAMES, RESULT_KEYS
from src.metrics.exchange import is_shared, summed
from src.metrics.functional import CurvePoints, check_fusion
from src.metrics.image_metrics import ImageMetrics
from src.metrics.own import OwnMetric, add, add_maps, of_all_processes, value_of
from src.metrics.pixel_metrics import PIXEL_ERRORS, PixelMetrics

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

    Validation and test need an instance each, and `reset` at the start of each round. The scores are kept, 4 bytes a
    pixel, until `finish` of their category or `reset` (MVTec at 240 x 240: 0.4 GB in all; VisA at native size about
    13 GB).

    Args:
        categories: names, in the order in which results are wanted.
        terms: the names of the image-level terms, in the method's order.
        fusion: how the terms are fused, one of `src.metrics.functional.FUSIONS`.
        memory_gb: what the pixel metrics of one category may take, in 10^9 bytes; beyond it they come from a histogram,
            of constant size, and with the bounds of their errors. None for any amount.
        own: metrics of the user's own, by the name that their value has in the result.
        thresholds: of the score of each image alone, by category: then there are the rates `escapes` and
            `false_alarms`.

    Attributes:
        num_images: how many images of each category were seen, in this process.
        vanished_masks: of each category with labels and masks, how many masks are empty though the label is not.
        empty_masks: of each category of which it is known, how many of such masks were empty from the start; they are
            not among those that vanished.
        finished: the results of categories whose scores are gone.
        curves: of each category that was computed, its curves by level: `image` of the fused score, `single` of the
            score of each image alone, `pixel`; see `src.metrics.functional.curve_points`.

    Raises:
        ValueError: if a category is named twice, there is no such fusion, it does not fit the terms, or a metric of the
            user's own is none, or has a name that the result needs.

    Example:
        >>> import torch
        >>> metrics = BenchmarkMetrics(["screw", "nut"], terms=["cls_score"], fusion="min_max_sum")
        >>> scores = torch.tensor([0.1, 0.9, 0.7, 0.5])
        >>> categories = ["screw", "screw", "nut", "nut"]
        >>> metrics.update(categories, {"cls_score": scores}, single_score=scores, label=torch.tensor([0, 1, 0, 1]))
        >>> metrics.compute()["categories"]["nut"]["image_AUROC"]
        0.0
        >>> metrics.compute()["mean"]["image_AUROC"]
        0.5
    """

    def __init__(
        self,
        categories: Sequence[str],
        terms: Sequence[str],
        fusion: str,
        memory_gb: float | None = None,
        own: Mapping[str, OwnMetric] | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.thresholds = dict(thresholds or {})
        missing = [name for name in categories if name not in self.thresholds]
        if thresholds and missing:
            raise ValueError(f"Expected argument `thresholds` to have each category, but {missing} are missing.")
        self.categories, self.terms, self.fusion = tuple(categories), tuple(terms), fusion
        self.memory_gb = memory_gb
        self.own = dict(own or {})
        self._index = {category: i for i, category in enumerate(self.categories)}
        if len(self._index) != len(self.categories):
            raise ValueError(f"Expected argument `categories` to name each once, but got {list(categories)}.")
        check_fusion(terms, fusion)
        for name, metric in self.own.items():
            if name in RESULT_KEYS:
                raise ValueError(f"Expected argument `own` to have other names than the result, but got {name}.")
            metric.build(name)
        max_pixels = None if memory_gb is None else int(memory_gb * 1e9 / BYTES_A_PIXEL)
        # Lists beside an index: a ModuleDict refuses names such as "type" or "a.b", which folders may well have.
        self.image_metrics = nn.ModuleList(
            ImageMetrics(terms, fusion, self.thresholds.get(name)) for name in self.categories
        )
        self.pixel_metrics = nn.ModuleList(PixelMetrics(max_pixels) for _ in self.categories)
        # In plain dictionaries, so that they stay on the CPU whatever the device of the module.
        self._own_pixel_metrics: dict[str, dict[str, Metric]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.num_images = dict.fromkeys(self.categories, 0)
        self.vanished_masks: dict[str, int] = {}
        self.empty_masks: dict[str, int] = {}
        self.finished: dict[str, dict[str, float]] = {}
        self.curves: dict[str, dict[str, CurvePoints]] = {}
        for name in self.categories:
            self._forget(name)

    def update(
        self,
        category: Sequence[str],
        terms: Mapping[str, Tensor],
        single_score: Tensor,
        label: Tensor | None = None,
        anomaly_map: Tensor | Sequence[Tensor] | None = None,
        mask: Tensor | Sequence[Tensor] | None = None,
        mask_is_empty: Sequence[bool] | None = None,
    ) -> None:
        """Add a batch that may mix categories.

        Args:
            category: B names.
            terms: name -> (B,) floating point, finite, any range.
            single_score: (B,) floating point, finite, any range: the score of each image on its own.
            label: (B,) {0, 1}; without it there are no image metrics.
            anomaly_map: (B, H, W) floating point, finite, any range, or B maps (H_i, W_i).
            mask: {0, 1}, shapes as the maps; without it there are no pixel metrics.
            mask_is_empty: B times whether an anomalous image has a mask that marks nothing at its own size either; None
                if it is not known.

        Raises:
            ValueError: if a category is unknown or finished, a term is missing or unknown, a mask comes without a map,
                a score is not finite, shapes, dtypes or values don't fit, or a metric of the user's own refuses them.
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
            **terms,
            "single_score": single_score,
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
                own_terms = {term: values[rows] for term, values in terms.items()}
                image_metrics.update(own_terms, single_score[rows], label[rows])
            if mask is not None and anomaly_map is not None:
                was_exact = pixel_metrics.is_exact
                maps, masks = _take(anomaly_map, rows), _take(mask, rows)
                pixel_metrics.update(maps, masks)
                for own_name, metric in self._own_pixel_metrics[name].items():
                    add_maps(metric, own_name, maps, masks)
                if was_exact and not pixel_metrics.is_exact:
                    _warn_of_histogram(name)
                if label is not None:
                    empty = sum(mask_is_empty[row] for row in rows) if mask_is_empty else 0
                    vanished = sum(bool(label[row]) and not bool(mask[row].any()) for row in rows) - empty
                    self.vanished_masks[name] = self.vanished_masks.get(name, 0) + vanished
                    if mask_is_empty:
                        self.empty_masks[name] = self.empty_masks.get(name, 0) + empty

    def compute(self) -> BenchmarkResult:
        """Return the metrics of each category that got an image, and their mean.

        A category has those of `METRIC_NAMES`, in [0, 1], that its data can give, with the thresholds
        `image_F1Max_threshold` and `pixel_F1Max_threshold`, and the metrics of the score of each image alone,
        `SINGLE_NAMES`. Where labels and masks are there it has `vanished_masks`: the number of images labelled
        anomalous whose mask is empty at the evaluation size, and `empty_masks`: of those whose mask was empty from the
        start, if that is known, which are not among the former. A category whose pixel metrics come from a histogram
        has `PIXEL_ERRORS` too: how far off each can be. A metric of the user's own is there if the category has both
        classes at its level and the value is finite. The mean of a metric is over the categories that have it; a metric
        that none has is absent. Nothing is reset.

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
        for metric in (*METRIC_NAMES, *DECISION_NAMES, *self.own):
            values = [result[metric] for result in categories.values() if metric in result]
            if values:
                mean[metric] = sum(values) / len(values)
        return {"mean": mean, "categories": categories}

    def finish(self, name: str) -> None:
        """Compute a category and release its memory; further images of it are refused.

        Where several processes share the images (see `is_shared`) none knows when the last one was seen, so this must
        not be called.

        Raises:
            RuntimeError: if several processes share the images.
        """
        if is_shared():
            raise RuntimeError(f"{name} can't be finished: several processes share its images")
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
            self.curves[name] = {
                **(image_metrics.points if counts.image_parts else {}),
                **(pixel_metrics.points if counts.pixel_parts else {}),
            }
            result |= self._compute_own(name, result)
        if counts.vanished_parts:
            result["vanished_masks"] = counts.vanished_masks
        if counts.empty_parts:
            result["empty_masks"] = counts.empty_masks
        _warn_of_errors(name, result)
        return result

    def _compute_own(self, name: str, result: Mapping[str, float]) -> dict[str, float]:
        """The user's own metrics, where the category has both classes and so an AUROC."""
        values = {}
        for own_name, own in self.own.items():
            if f"{own.level}_AUROC" not in result:
                continue
            if own.level == "image":
                fused, label = self.metrics_of(name)[0].fused()
                metric = own.build(own_name)
                add(metric, own_name, fused, label)
            else:
                metric = of_all_processes(self._own_pixel_metrics[name][own_name])
            values[own_name] = value_of(metric, own_name)
        return {own_name: value for own_name, value in values.items() if value is not None}

    def _forget(self, name: str) -> None:
        for metric in self.metrics_of(name):
            metric.reset()
        pixel_level = {own_name: own for own_name, own in self.own.items() if own.level == "pixel"}
        self._own_pixel_metrics[name] = {own_name: own.build(own_name) for own_name, own in pixel_level.items()}

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
