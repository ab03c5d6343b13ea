"""Exact anomaly-detection metrics as functions of tensors."""

from src.metrics.functional.aupro import aupro
from src.metrics.functional.auroc import auroc
from src.metrics.functional.average_precision import average_precision
from src.metrics.functional.components import ComponentWeights, component_weights
from src.metrics.functional.curve import ExactCurve, count_normals, exact_curve
from src.metrics.functional.f1_max import BestF1, f1_max
from src.metrics.functional.fusion import fuse_image_scores

__all__ = [
    "BestF1",
    "ComponentWeights",
    "ExactCurve",
    "aupro",
    "auroc",
    "average_precision",
    "component_weights",
    "count_normals",
    "exact_curve",
    "f1_max",
    "fuse_image_scores",
]
