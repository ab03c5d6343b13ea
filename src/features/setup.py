"""From the configuration to the feature cache of a run, or to why it has none."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning import Trainer
from omegaconf import DictConfig

from src.features.cache import FeatureCache
from src.features.store import ArrayStore
from src.models.backbone import BackboneSource
from src.models.method import Method
from src.trainer import shortcuts

AUTO = "auto"
# Another version of these may compute other features, if only in the last digits.
_PACKAGES = ("open_clip_torch", "torch", "pillow")


def open_feature_cache(
    config: DictConfig,
    source: BackboneSource,
    weights_sha256: str | None,
    method: Method,
    trainer: Trainer,
    *,
    trains: bool,
) -> FeatureCache | str | None:
    """Open the cache if it is wanted and can be used.

    Args:
        config: a validated configuration.
        source: the backbone.
        weights_sha256: of its weights; None if they are random.
        method: computes the features.
        trainer: tells device and precision.
        trains: whether something is trained.

    Returns:
        The cache; why there is none, for the user; or None where nobody would expect one.
    """
    settings = config.feature_cache
    if settings.enabled is False or (settings.enabled == AUTO and not trains):
        return None
    augments = trains and config.train_data.transforms != "default"
    if augments:
        return f"train_data.transforms={config.train_data.transforms} gives other images in each epoch"
    if method.frozen is None:
        return None if settings.enabled == AUTO else f"nothing of model {method.name} is frozen"
    if weights_sha256 is None:
        return "the backbone's weights are random"
    if settings.enabled == AUTO and trainer.world_size > 1:
        # They are computed before there are several processes.
        return "one of several processes would compute all features alone; feature_cache.enabled=true has it do so"
    if settings.enabled == AUTO and shortcuts(config.trainer):
        return f"the run is cut short by {', '.join(shortcuts(config.trainer))}"
    store = ArrayStore(Path(config.paths.cache_dir).expanduser() / "features", settings.max_gb * 1e9)
    return FeatureCache(store, _identity(source, weights_sha256, trainer), settings.dtype, method, trainer)


def _identity(source: BackboneSource, weights_sha256: str, trainer: Trainer) -> dict[str, Any]:
    """What decides what the tower makes of an image of a given size."""
    return {
        "weights": weights_sha256,
        "architecture": source.config,
        "quick_gelu": source.weights.quick_gelu,
        "precision": str(trainer.precision),
        "device": trainer.strategy.root_device.type,
        "packages": {name: version(name) for name in _PACKAGES},
    }
