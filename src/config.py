"""The root configuration's type, and the checks that composing alone does not make."""

from __future__ import annotations

import difflib
import inspect
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.errors import UserError, reason_of

Keys = tuple[str, ...]  # that lead to a value

_INSTANTIATE_KEYS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}
# The nodes that are instantiated, and the class that each one's `_target_` is or extends.
_DATA = "datamodules.base.AnomalyDataModule"
_KINDS = {
    "test_data": _DATA,
    "train_data": _DATA,
    "model": "src.models.method.Method",
    "prompts": "src.models.prompts.Prompts",
    "optimizer": "torch.optim.Optimizer",
    "trainer": "lightning.Trainer",
    "callbacks": "lightning.Callback",
    "logger": "lightning.pytorch.loggers.Logger",
}
_BY_NAME = ("callbacks", "logger")  # these hold any number of them
_ANY_CLASS = "builtins.object"
# Where the classes of nested nodes come from, beside the package of the node that they are in. Other packages have
# classes that write files or start programs as soon as they are made.
_NESTED = ("lightning", "torch", "torchmetrics", "src", "datamodules")
_LARGEST_SEED = 2**32 - 1  # for a larger one, Lightning takes another


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
    Nothing that a `_target_` names is imported before all else is known to be right, and nothing is called here.

    Returns:
        The configuration with every type checked and every interpolation resolved: a run instantiates what was checked,
        and not what an interpolation gives when it is read again.

    Raises:
        UserError: an unknown key, a value of the wrong type, a value that is missing, a `_target_` that is not of the
            kind that its node stands for.
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
        OmegaConf.resolve(typed)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError("configuration: an interpolation leads back to a node that it is in; give a value") from error
    assert isinstance(typed, DictConfig)
    content = OmegaConf.to_container(typed)
    _check_values(content)
    if not 0 <= typed.seed <= _LARGEST_SEED:
        raise UserError(f"configuration: seed must be from 0 to {_LARGEST_SEED}, but got {typed.seed}")
    if typed.metrics_memory_gb < 0:
        raise UserError(f"configuration: metrics_memory_gb must be 0 or more, but got {typed.metrics_memory_gb}")
    _check_feature_cache(typed.feature_cache)
    if str(typed.paths.output_dir).startswith("~"):
        raise UserError("configuration: paths.output_dir is taken as it is; write the home folder out instead of ~")
    _check_targets(content)
    return typed


def _check_values(content: Any) -> None:
    """Refuse numbers that no setting means, and what would be another value when it is read again."""
    for path, value in _walk(content):
        if isinstance(value, float) and not isfinite(value):
            raise UserError(f"configuration: {'.'.join(path)} must be a finite number, but got {value}")
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"configuration: {'.'.join(path)} must not have ${{ in its value, but got '{value}'; "
                "write an interpolation without a backslash"
            )


def _check_feature_cache(settings: DictConfig) -> None:
    choices = {"enabled": ("auto", True, False), "dtype": ("float32", "float16")}
    for key, allowed in choices.items():
        if settings[key] not in allowed:
            names = ", ".join(str(one).lower() for one in allowed)
            raise UserError(f"configuration: feature_cache.{key} must be one of {names}, but got {settings[key]}")
    if not settings.max_gb > 0:
        raise UserError(f"configuration: feature_cache.max_gb must be above 0, but got {settings.max_gb}")


def _walk(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """A plain value and all that it holds, in dictionaries and lists."""
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _walk(child, (*path, str(key)))


def _kind_of(path: Keys) -> str | None:
    """The class that a node's `_target_` extends; any class below the nodes that have a kind; else None."""
    depth = 2 if path[:1] and path[0] in _BY_NAME else 1
    kind = _KINDS.get(path[0]) if len(path) >= depth else None
    return _ANY_CLASS if kind and len(path) > depth else kind


def _check_targets(content: Any) -> None:
    """Check everything that will be instantiated; whatever is wrong by its name alone, before anything is imported."""
    targets = []
    for path, value in _walk(content):
        kind = _kind_of(path)
        if isinstance(value, dict) and "_target_" in value:
            _check_name(path, value, kind)
            targets.append((path, value, str(kind)))
        elif kind not in (None, _ANY_CLASS) and value is not None:
            raise UserError(f"{'.'.join(path)} must have a _target_ that names {_wanted(kind)}, or be null; see conf/")
    owners = {path: str(node["_target_"]).partition(".")[0] for path, node, kind in targets if kind != _ANY_CLASS}
    for path, node, kind in targets:
        package, owner = (
            node["_target_"].partition(".")[0],
            next(owners[key] for key in owners if path[: len(key)] == key),
        )
        if package not in (*_NESTED, owner):
            names = ", ".join(dict.fromkeys((*_NESTED, owner)))
            raise UserError(f"{'.'.join(path)}._target_ must name a class of {names}, but got {node['_target_']}")
        found = _import(path, node["_target_"])
        _check_class(path, node["_target_"], found, kind)
        _check_against_signature(path, node, found)


def _check_name(path: Keys, node: dict[Any, Any], kind: str | None) -> None:
    """Refuse a `_target_` whose place or name is wrong, and a factory where an object is wanted, or the reverse."""
    key, target = ".".join(path), node["_target_"]
    if kind is None:
        raise UserError(f"{key}._target_: nothing is instantiated here; leave it out")
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{key}._target_ must name {_wanted(kind)}, as package.module.Class, but got '{target}'")
    if parts[0] in sys.stdlib_module_names:
        raise UserError(f"{key}._target_ must name {_wanted(kind)}, but {target} is Python's own")
    wants_factory = path == ("optimizer",)
    if kind != _ANY_CLASS and node.get("_partial_", False) is not wants_factory:
        needed, found = (str(one).lower() for one in (wants_factory, node.get("_partial_", False)))
        raise UserError(f"{key}._partial_ must be {needed}, but got {found}")


def _check_class(path: Keys, target: str, found: Any, kind: str) -> None:
    """Refuse what is no class of the kind that a node stands for. An alias of one of Python's own is Python's own."""
    if not isinstance(found, type):
        raise UserError(f"{'.'.join(path)}._target_ must name {_wanted(kind)}, but {target} is no class")
    if found.__module__.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{'.'.join(path)}._target_ must name {_wanted(kind)}, but {target} is Python's own")
    if not issubclass(found, get_object(kind)):
        raise UserError(f"{'.'.join(path)}._target_ must name {_wanted(kind)}, but {target} does not extend it")


def _wanted(kind: str) -> str:
    return "a class of an installed package" if kind == _ANY_CLASS else f"a class that extends {kind}"


def _import(path: Keys, target: str) -> Any:
    """What a `_target_` names. Its module is the user's, and may fail in any way."""
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it tells what is told below, in several lines
    try:
        return get_object(target)
    except (Exception, SystemExit) as error:
        raise UserError(f"{'.'.join(path)}._target_: can't import '{target}' ({reason_of(error)})") from error


def _check_against_signature(path: Keys, node: dict[Any, Any], found: type) -> None:
    """Refuse keys that the target does not take, before anything expensive has run."""
    try:
        parameters = inspect.signature(found).parameters
    except (ValueError, TypeError):  # of a class that is written in C
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in map(str, node):
        if key not in parameters and key not in _INSTANTIATE_KEYS:
            raise UserError(
                f"unknown configuration key '{'.'.join(path)}.{key}'{_did_you_mean(key, list(parameters))}; "
                f"{node['_target_']} takes {', '.join(parameters)}"
            )


def _did_you_mean(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
