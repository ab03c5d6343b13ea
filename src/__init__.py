"""CLIP-AD as a PyTorch Lightning framework: SDP and SDP+ (arXiv 2311.00453)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.errors import UserError as UserError
    from src.detector import AnomalyDetector as AnomalyDetector
    from src.detector import Prediction as Prediction

__all__ = ["AnomalyDetector", "Prediction", "UserError"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: a command's help takes no torch."""
    if name == "UserError":
        from datamodules.errors import UserError

        return UserError
    if name in __all__:
        from src import detector

        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
