"""Anomaly-detection metrics as functions of tensors: exact, or from a histogram with a bound of the error."""

from src.metric_names import CurvePoints
from src.metrics.functional.aupro import aupro
from src.metrics.functional.auroc import auroc
from src.metrics.functional.average_precision import average_precision
from src.metrics.functional.bounds import aupro_error, auroc_error, average_precision_error, f1_max_error
from src.metrics.functional.components import ComponentAreas, component_areas
from src.metrics.functional.curve import (
    AnomalousSide,
    Curve,
    anomalous_side,
    ascending,
    count_normals,
    exact_curve,
    sort_and_count,
)
from src.metrics.functional.f1_max import BestF1, f1_max
from src.metrics.functional.fusion import FUSIONS, check_fusion, fuse, needs_all_images
from src.metrics.functional.histogram import count_anomalous, count_normal, empty_histogram, histogram_curve
from src.metrics.functional.points import curve_points

__all__ = [
    "FUSIONS",
    "AnomalousSide",
    "BestF1",
    "ComponentAreas",
    "Curve",
    "CurvePoints",
    "anomalous_side",
    "ascending",
    "aupro",
    "aupro_error",
    "auroc",
    "auroc_error",
    "average_precision",
    "average_precision_error",
    "check_fusion",
    "component_areas",
    "count_anomalous",
    "count_normal",
    "count_normals",
    "curve_points",
    "empty_histogram",
    "exact_curve",
    "f1_max",
    "f1_max_error",
    "fuse",
    "histogram_curve",
    "needs_all_images",
    "sort_and_count",
]
