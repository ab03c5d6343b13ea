"""Exact anomaly-detection metrics: a functional core on tensors, and thin torchmetrics classes."""

from src.metrics.benchmark_metrics import METRIC_NAMES, BenchmarkMetrics, BenchmarkResult
from src.metrics.curve_metrics import AUPRO, AUROC, AveragePrecision, F1Max
from src.metrics.image_metrics import ImageMetrics
from src.metrics.pixel_metrics import PixelMetrics
from src.run.metric_state import merge_states, write_state

__all__ = [
    "AUPRO",
    "AUROC",
    "METRIC_NAMES",
    "AveragePrecision",
    "BenchmarkMetrics",
    "BenchmarkResult",
    "F1Max",
    "ImageMetrics",
    "PixelMetrics",
    "merge_states",
    "write_state",
]
