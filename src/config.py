"""The root configuration's type, and the checks that composing alone does not make."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.errors import UserError

_INSTANTIATE_KEYS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


@dataclass
class BackboneConfig:
    """A CLIP of open_clip."""

    name: str = MISSING
    pretrained: str | None = None
    config: str | None = None
    compile: bool = False


@dataclass
class PathsConfig:
    """Where things are read and written."""

    data_dir: str = MISSING
    output_dir: str = MISSING
    cache_dir: str = MISSING


@dataclass
class FeatureCacheConfig:
    """Frozen features on disk."""

    enabled: Any = "auto"  # auto, true or false
    dtype: str = "float32"
    max_gb: float = 40.0


@dataclass
class Config:
    """Every key a run may have. Nodes with a `_target_` are checked against its signature instead."""

    test_data: dict[str, Any] = MISSING
    train_data: dict[str, Any] | None = None
    model: dict[str, Any] = MISSING
    prompts: dict[str, Any] = MISSING
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    trainer: dict[str, Any] = MISSING
    logger: dict[str, Any] | None = None
    callbacks: dict[str, Any] | None = None
    paths: PathsConfig = field(default_factory=PathsConfig)
    feature_cache: FeatureCacheConfig = field(default_factory=FeatureCacheConfig)
    seed: int = 42
    optimizer: dict[str, Any] | None = None
    val_categories: list[str] = field(default_factory=list)
    select: str = "last"
    test: bool = True
    allow_leakage: bool = False
    ckpt_path: str | None = None
    save_maps: bool = False
    metrics_memory_gb: float = 4.0


def validate(config: DictConfig) -> DictConfig:
    """Check a composed configuration.

    Composing refuses overrides of keys that don't exist, but not `+foo=3`, nor a misspelt key in an experiment's file.

    Returns:
        The configuration with every type checked.

    Raises:
        UserError: an unknown key, a value of the wrong type, a value that is missing.
    """
    known = list(Config.__dataclass_fields__)
    for key in map(str, config):
        if key not in known:
            raise UserError(f"unknown configuration key '{key}'{_did_you_mean(key, known)}")
    try:
        typed = OmegaConf.merge(OmegaConf.structured(Config), config)
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise UserError(f"configuration values are missing: {', '.join(missing)}; give them as KEY=VALUE")
        OmegaConf.to_container(typed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {' '.join(str(error).split())}") from error
    if typed.seed < 0:
        raise UserError(f"configuration: seed must be 0 or more, but got {typed.seed}")
    if typed.metrics_memory_gb < 0:
        raise UserError(f"configuration: metrics_memory_gb must be 0 or more, but got {typed.metrics_memory_gb}")
    _check_feature_cache(typed.feature_cache)
    if str(typed.paths.output_dir).startswith("~"):
        raise UserError("configuration: paths.output_dir is taken as it is; write the home folder out instead of ~")
    for path, node in _nodes(config):
        _check_against_signature(path, node)
    assert isinstance(typed, DictConfig)
    return typed


def _check_feature_cache(settings: DictConfig) -> None:
    choices = {"enabled": ("auto", True, False), "dtype": ("float32", "float16")}
    for key, allowed in choices.items():
        if settings[key] not in allowed:
            names = ", ".join(str(one).lower() for one in allowed)
            raise UserError(f"configuration: feature_cache.{key} must be one of {names}, but got {settings[key]}")
    if not settings.max_gb > 0:
        raise UserError(f"configuration: feature_cache.max_gb must be above 0, but got {settings.max_gb}")


def _nodes(node: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """All nodes with a `_target_`, with their dotted path."""
    if "_target_" in node:
        yield path, node
    for key in map(str, node):
        if not OmegaConf.is_missing(node, key):
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
                yield from _nodes(child, f"{path}.{key}" if path else key)


def _check_against_signature(path: str, node: DictConfig) -> None:
    """Refuse keys that the target does not take, before anything expensive has run."""
    target = str(node["_target_"])
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it tells what is told below, in several lines
    try:
        parameters = inspect.signature(get_object(target)).parameters
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"{path}._target_: can't import '{target}' ({error})") from error
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in map(str, node):
        if key not in parameters and key not in _INSTANTIATE_KEYS:
            raise UserError(
                f"unknown configuration key '{path}.{key}'{_did_you_mean(key, list(parameters))}; "
                f"{target} takes {', '.join(parameters)}"
            )


def _did_you_mean(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
