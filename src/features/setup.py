"""From the configuration to the feature cache of a run, or to why it has none."""

from __future__ import annotations

import hashlib
import inspect
from itertools import chain
from pathlib import Path
from typing import Any

from lightning import Trainer
from omegaconf import DictConfig
from torch import Tensor, nn

from datamodules.base import AnomalyDataModule
from src.arrays import checksum
from src.clip.backbone import Backbone, BackboneSource
from src.config import plain, shortcuts
from src.features.cache import FeatureCache
from src.features.store import ArrayStore
from src.identity import NoSource, identify_code, identify_machine
from src.models.method import Method

AUTO = "auto"


def open_feature_cache(
    config: DictConfig,
    source: BackboneSource,
    method: Method,
    trainer: Trainer,
    *,
    trains: bool,
) -> FeatureCache | str | None:
    """Open the cache if it is wanted and can be used.

    Args:
        config: a validated configuration.
        source: the backbone.
        method: computes the features.
        trainer: tells device and precision.
        trains: whether something is trained.

    Returns:
        The cache; or, as text for the user, why there is none; or None where nobody would expect one.
    """
    settings = config.feature_cache
    if settings.enabled is False or (settings.enabled == AUTO and not trains):
        return None
    augments = trains and config.train_data.transforms != "default"
    if augments:
        return f"train_data.transforms={config.train_data.transforms} gives other images in each epoch"
    if method.frozen is None:
        return None if settings.enabled == AUTO else f"nothing of model {method.name} is frozen"
    if source.weights.sha256 is None:
        return "the backbone's weights are random"
    if settings.enabled == AUTO and trainer.world_size > 1:
        # They are computed before there are several processes.
        return "one of several processes would compute all features alone; feature_cache.enabled=true has it do so"
    if settings.enabled == AUTO and shortcuts(config.trainer):
        return f"the run is cut short by {', '.join(shortcuts(config.trainer))}"
    try:
        identity = _identity(config, source, source.weights.sha256, method, trainer)
    except NoSource as reason:
        return str(reason)
    store = ArrayStore(Path(config.paths.cache_dir).expanduser() / "features", settings.max_gb * 1e9)
    used = {"train": config.train_data, "val": config.train_data, "test": config.test_data}
    options = {role: _own_options(node) for role, node in used.items() if node is not None}
    return FeatureCache(store, identity, options, settings.dtype, method, trainer)


def _identity(
    config: DictConfig, source: BackboneSource, weights_sha256: str, method: Method, trainer: Trainer
) -> dict[str, Any]:
    """What decides what a method makes of an image of a given size.

    The project's own methods say in `frozen` which of their options that are. Of the user's it is all options, since a
    subclass inherits `frozen` and may read options of its own.
    """
    is_own = type(method).__module__.partition(".")[0] != "src"
    return {
        "code": identify_code(type(module) for module in method.modules()),
        "options": plain(config.model) if is_own else None,
        "state": _hash_of_frozen_state(method),
        "compiled": config.backbone.compile,
        "weights": weights_sha256,
        "architecture": source.config,
        "quick_gelu": source.weights.quick_gelu,
        "position_resize": source.position_resize,
        "precision": str(trainer.precision),
        "machine": identify_machine(trainer.strategy.root_device),
    }


def _own_options(node: DictConfig) -> dict[str, Any]:
    """The options that not every data set has: a class of the user's may read its images by them."""
    shared = inspect.signature(AnomalyDataModule).parameters.keys() - {"bits"}
    return {key: value for key, value in plain(node).items() if key not in shared}


def _hash_of_frozen_state(method: Method) -> str:
    """The hash of what a method holds beside CLIP and is not trained, such as a random projection of the run's seed."""
    clip = {id(value) for one in method.modules() if isinstance(one, Backbone) for value in _state(one).values()}
    frozen = [
        checksum(name, value)
        for name, value in _state(method).items()
        if not (value.requires_grad or id(value) in clip)
    ]
    return hashlib.sha256("".join(frozen).encode()).hexdigest()


def _state(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(), module.named_buffers()))
