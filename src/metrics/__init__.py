"""Exact anomaly-detection metrics: a functional core on tensors, and thin torchmetrics classes."""

from src.metric_names import METRIC_NAMES
from src.metrics.benchmark_metrics import BenchmarkMetrics, BenchmarkResult
from src.metrics.curve_metrics import AUPRO, AUROC, AveragePrecision, F1Max
from src.metrics.exchange import is_shared
from src.metrics.image_metrics import ImageMetrics
from src.metrics.own import OwnMetric
from src.metrics.pixel_metrics import PixelMetrics

__all__ = [
    "AUPRO",
    "AUROC",
    "METRIC_NAMES",
    "AveragePrecision",
    "BenchmarkMetrics",
    "BenchmarkResult",
    "F1Max",
    "ImageMetrics",
    "OwnMetric",
    "PixelMetrics",
    "is_shared",
]
