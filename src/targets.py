"""What a `_target_` may name, and what its node may hold. Classes are imported, but nothing is called."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any, Literal

from hydra.utils import get_object

from datamodules.errors import UserError, reason_of
from src.annotations import arguments_of, fits, in_words, is_text
from src.overrides import did_you_mean

Keys = tuple[str, ...]  # that lead to a value

_FILLED_IN = ("image_size",)  # null of it is the backbone's, and stands in a data module when it is built
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
    "metrics": "torchmetrics.Metric",
}
_BY_NAME = ("callbacks", "logger", "metrics")  # these hold any number of them
_ANY_CLASS = "builtins.object"
_LEVEL, _LEVELS = "level", ("image", "pixel")  # of a metric's node: what its class is fed with, and no argument of it
# Where the classes of nested nodes come from, beside the package of the node that they are in. Other packages have
# classes that write files or start programs as soon as they are made.
_NESTED = ("lightning", "torch", "torchmetrics", "src", "datamodules")


def check_targets(content: Any) -> None:
    """Check everything that will be instantiated. What is wrong by its name alone is found before any import.

    Args:
        content: a configuration as plain dictionaries and lists. A number that an argument wants as text becomes text.

    Raises:
        UserError: a `_target_` is not of the kind that its node stands for; its class does not take a key or a value.

    Example:
        >>> check_targets({"optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": "fast"}})
        Traceback (most recent call last):
          ...
        datamodules.errors.UserError: optimizer.lr must be a number, but got fast
    """
    targets = []
    for path, value in walk(content):
        kind = _kind_of(path)
        if isinstance(value, dict) and "_target_" in value:
            _check_name(path, value, kind)
            targets.append((path, value, str(kind)))
        elif kind not in (None, _ANY_CLASS) and value is not None:
            raise UserError(f"{'.'.join(path)} must have a _target_ that names {_wanted(kind)}, or be null; see conf/")
    owners = {path: _package(node) for path, node, kind in targets if kind != _ANY_CLASS}
    for path, node, kind in targets:
        owner = next(owners[key] for key in owners if path[: len(key)] == key)
        if _package(node) not in (*_NESTED, owner):
            names = ", ".join(dict.fromkeys((*_NESTED, owner)))
            raise UserError(f"{'.'.join(path)}._target_ must name a class of {names}, but got {node['_target_']}")
        found = _import(path, node["_target_"])
        _check_class(path, node["_target_"], found, kind)
        _check_arguments(path, node, found)


def walk(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """A plain value and all that it holds, in dictionaries and lists, each with the keys that lead to it.

    Example:
        >>> for path, value in walk({"trainer": {"devices": [0, 1]}}):
        ...     print(path, value)
        () {'trainer': {'devices': [0, 1]}}
        ('trainer',) {'devices': [0, 1]}
        ('trainer', 'devices') [0, 1]
        ('trainer', 'devices', '0') 0
        ('trainer', 'devices', '1') 1
    """
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from walk(child, (*path, str(key)))


def _kind_of(path: Keys) -> str | None:
    """The class that a node's `_target_` extends; any class below the nodes that have a kind; else None."""
    depth = 2 if path[:1] and path[0] in _BY_NAME else 1
    kind = _KINDS.get(path[0]) if len(path) >= depth else None
    return _ANY_CLASS if kind and len(path) > depth else kind


def _package(node: dict[Any, Any]) -> str:
    return str(node["_target_"]).partition(".")[0]


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


def _check_arguments(path: Keys, node: dict[Any, Any], found: type) -> None:
    """Refuse keys that a class does not take and values of another type, before anything expensive has run."""
    arguments, takes_others = arguments_of(found)
    if path[0] == "metrics" and len(path) == 2:
        arguments[_LEVEL] = Literal[_LEVELS]
        if _LEVEL not in node:
            raise UserError(f"{'.'.join(path)} must have a {_LEVEL}: {' or '.join(_LEVELS)}")
    for key, value in node.items():
        name = ".".join((*path, str(key)))
        if key in _INSTANTIATE_KEYS or (isinstance(value, dict) and "_target_" in value and key in arguments):
            continue
        if key not in arguments and not takes_others:
            hint = did_you_mean(str(key), list(arguments), f"{'.'.join(path)}.")
            raise UserError(f"unknown configuration key '{name}', which {node['_target_']} does not take{hint}")
        annotation = arguments.get(key, Any)
        if value is None and key in _FILLED_IN:
            continue
        if not fits(value, annotation):
            raise UserError(f"{name} must be {in_words(annotation)}, but got {_as_yaml(value)}")
        if is_text(value, annotation):
            node[key] = str(value)


def _as_yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
