# B = images of a batch; H, W = height, width; K = bins of a histogram
"""Pixel-level metrics of one category."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from src.metrics.base import RegionCurveMetric, points_of, summarise
from src.metrics.exchange import summed
from src.metrics.functional import (
    Curve,
    CurvePoints,
    aupro,
    aupro_error,
    auroc_error,
    average_precision_error,
    count_anomalous,
    count_normal,
    empty_histogram,
    f1_max_error,
    histogram_curve,
)

PIXEL_ERRORS = {
    "pixel_AUROC_error": auroc_error,
    "pixel_AP_error": average_precision_error,
    "pixel_F1Max_error": f1_max_error,
    "pixel_AUPRO_error": aupro_error,
}
"""What `PixelMetrics` adds where a histogram took over: the bound of each metric's error."""


class PixelMetrics(RegionCurveMetric):
    """AUROC, AP, F1-max and AUPRO of one category's maps, read off one curve.

    The curve is exact up to `max_pixels`, 4 bytes a pixel and up to 12 while it is computed. Beyond, everything goes
    to a histogram of constant size, 24 MB, and the result says how far off each metric can be.

    Args:
        max_pixels: the most pixels to hold; None for any number.
        kwargs: see `torchmetrics.Metric`.

    Attributes:
        points: the curve of the last `compute`, as `pixel`.

    Example:
        >>> metrics = PixelMetrics()
        >>> metrics.update(torch.tensor([[[0.1, 0.2], [0.9, 0.8]]]), torch.tensor([[[0, 0], [1, 1]]]))
        >>> metrics.compute()["pixel_AUPRO"]
        1.0
    """

    histogram: list[Tensor]  # none, or one (3, K)

    def __init__(self, max_pixels: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_pixels = max_pixels
        self.points: dict[str, CurvePoints] = {}
        self.add_state("histogram", default=[], dist_reduce_fx=None)

    @property
    def is_exact(self) -> bool:
        """Whether no histogram took over."""
        return not self.histogram

    def update(self, anomaly_map: Tensor | Sequence[Tensor], mask: Tensor | Sequence[Tensor]) -> None:
        """Add images; see `RegionCurveMetric.update`."""
        super().update(anomaly_map, mask)
        self.limit_memory()

    def compute(self) -> dict[str, float]:
        """Return pixel_AUROC, pixel_AP, pixel_F1Max, pixel_AUPRO in [0, 1] and pixel_F1Max_threshold.

        With a histogram also `PIXEL_ERRORS`. Empty if a class is missing.
        """
        curve = self.curve()
        self.points = points_of({"pixel": curve})
        values = {**summarise(curve, "pixel"), "pixel_AUPRO": aupro(curve)}
        if not self.is_exact:
            values |= {name: error(curve) for name, error in PIXEL_ERRORS.items()}
        return {name: value for name, value in values.items() if value is not None}

    def curve(self) -> Curve:
        """Return the curve of everything that was added, in whichever process.

        It is exact or not as it would be in a single one: they hand over together.
        """
        num_pixels, num_histograms = summed(torch.tensor([self._num_pixels(), len(self.histogram)])).tolist()
        if not num_histograms and not self._is_too_much(num_pixels):
            return super().curve()
        self._hand_over()
        return histogram_curve(summed(self.histogram[0]))

    def limit_memory(self) -> None:
        """Hand over to the histogram if there is one already, or if more pixels are held than may be."""
        if not self.is_exact or self._is_too_much(self._num_pixels()):
            self._hand_over()

    def _num_pixels(self) -> int:
        return sum(len(part) for part in (*self.anomalous_scores, *self.normal_scores))

    def _is_too_much(self, num_pixels: int) -> bool:
        return self.max_pixels is not None and num_pixels > self.max_pixels

    def _hand_over(self) -> None:
        """Move all scores to the histogram, part by part; torchmetrics' `forward` may leave a second one."""
        histogram, *others = self.histogram or [empty_histogram()]
        for other in others:
            histogram += other
        for scores, areas in zip(self.anomalous_scores, self.anomalous_areas, strict=True):
            count_anomalous(histogram, scores, areas)
        for scores in self.normal_scores:
            count_normal(histogram, scores)
        self.anomalous_scores, self.anomalous_areas, self.normal_scores = [], [], []
        self.histogram = [histogram]
