"""Pixel-level metrics of one category."""

from src.metrics.base import RegionCurveMetric, summarise
from src.metrics.functional import aupro


class PixelMetrics(RegionCurveMetric):
    """AUROC, AP, F1-max and AUPRO of one category's maps, read off one exact curve."""

    def compute(self) -> dict[str, float]:
        """Return pixel_AUROC, pixel_AP, pixel_F1Max, pixel_AUPRO in [0, 1] and pixel_F1Max_threshold.

        Empty if a class is missing.
        """
        curve = self.curve()
        values = summarise(curve, "pixel")
        overlap_area = aupro(curve)
        return values if overlap_area is None else {**values, "pixel_AUPRO": overlap_area}
