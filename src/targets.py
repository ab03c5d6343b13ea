"""What a `_target_` may name, and what its node may hold. Classes are imported, but nothing is called.

Of the annotations of a class's arguments the plain ones are looked at: numbers, text, bool, None, Literal, sequences,
and unions of these.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import types
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object

from datamodules.errors import UserError, reason_of
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
_TEXT = (str, Path, os.PathLike)
_SEQUENCES = (list, tuple, set, Sequence, Collection, Iterable)
_WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}
_WORDS |= dict.fromkeys(_TEXT, "text")


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
        _check_arguments(path, node, _class_of(path, node["_target_"], kind))


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
        raise _mistake(path, kind, f"as package.module.Class, but got '{target}'")
    if parts[0] in sys.stdlib_module_names:
        raise _mistake(path, kind, f"but {target} is Python's own")
    wants_factory = path == ("optimizer",)
    if kind != _ANY_CLASS and node.get("_partial_", False) is not wants_factory:
        needed, found = (str(one).lower() for one in (wants_factory, node.get("_partial_", False)))
        raise UserError(f"{key}._partial_ must be {needed}, but got {found}")


def _class_of(path: Keys, target: str, kind: str) -> type:
    """Import what a `_target_` names, and refuse what is no class of the kind that its node stands for."""
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it tells what is told below, in several lines
    try:
        found = get_object(target)
    except (Exception, SystemExit) as error:  # the module is the user's, and may fail in any way
        raise UserError(f"{'.'.join(path)}._target_: can't import '{target}' ({reason_of(error)})") from error
    if not isinstance(found, type):
        raise _mistake(path, kind, f"but {target} is no class")
    if found.__module__.partition(".")[0] in sys.stdlib_module_names:  # by another name
        raise _mistake(path, kind, f"but {target} is Python's own")
    if not issubclass(found, get_object(kind)):
        raise _mistake(path, kind, f"but {target} does not extend it")
    return found


def _mistake(path: Keys, kind: str, reason: str) -> UserError:
    return UserError(f"{'.'.join(path)}._target_ must name {_wanted(kind)}, {reason}")


def _wanted(kind: str) -> str:
    return "a class of an installed package" if kind == _ANY_CLASS else f"a class that extends {kind}"


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


def arguments_of(found: type) -> tuple[dict[str, Any], bool]:
    """The arguments of a class by name, each with its annotation, and whether it may take others.

    A constructor with `**options` passes them to the constructor of its base, so the base's arguments count too. An
    annotation that can't be read is `Any`.

    Example:
        >>> class Blur:
        ...     def __init__(self, sigma: float, size: int = 5) -> None: ...
        >>> arguments_of(Blur)
        ({'sigma': <class 'float'>, 'size': <class 'int'>}, False)
    """
    arguments: dict[str, Any] = {}
    try:
        signatures = [(found.__init__, inspect.signature(found))]  # type: ignore[misc]
        if _takes_others(signatures[0][1]):
            constructors = [vars(owner)["__init__"] for owner in found.__mro__[:-1] if "__init__" in vars(owner)]
            signatures += [(one, inspect.signature(one)) for one in constructors]
    except (ValueError, TypeError):  # of a class that is written in C
        return arguments, True
    for constructor, signature in signatures:
        try:
            hints = get_type_hints(constructor)
        except Exception:  # a name that is imported for type checkers alone, say
            hints = {}
        for name, parameter in signature.parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                annotation = hints.get(name, Any)
                implied = parameter.default is None and annotation is not Any
                arguments.setdefault(name, Union[annotation, None] if implied else annotation)  # noqa: UP007
        if not _takes_others(signature):
            return arguments, False
    return arguments, True


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value fits an annotation. An annotation without any plain part fits every value.

    Example:
        >>> fits(3, float), fits("3", float), fits([3, 6], list[int])
        (True, False, True)
    """
    members = _members(annotation)
    has_plain = any(_is_plain(member) for member in members)
    return not has_plain or any(_fits(value, member) for member in members) or is_text(value, annotation)


def is_text(value: Any, annotation: Any) -> bool:
    """Whether a value is a number where only text is wanted, such as a category that is called 7.

    Example:
        >>> is_text(7, str), is_text(7, str | int)
        (True, False)
    """
    members = [member for member in _members(annotation) if member is not type(None)]
    return _is_number(value) and bool(members) and all(member in _TEXT for member in members)


def in_words(annotation: Any) -> str:
    """What an annotation takes, in words: `a whole number or null`.

    Example:
        >>> in_words(int | None)
        'a whole number or null'
    """
    members = [member for member in _members(annotation) if _is_plain(member)]
    words = dict.fromkeys(_word_for(member) for member in members if not (member is int and float in members))
    return " or ".join(words)


def _takes_others(signature: inspect.Signature) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())


def _members(annotation: Any) -> list[Any]:
    """The parts of a union; a single annotation is its only part."""
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]


def _sequence_of(annotation: Any) -> Any:
    """The annotation of a sequence's elements; None if it is no sequence."""
    if annotation not in _SEQUENCES and get_origin(annotation) not in _SEQUENCES:
        return None
    elements = [one for one in get_args(annotation) if one is not ...]
    return Union[tuple(elements)] if elements else Any  # noqa: UP007 - of what is known only here


def _is_plain(annotation: Any) -> bool:
    return annotation in _WORDS or get_origin(annotation) is Literal or _sequence_of(annotation) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fits(value: Any, member: Any) -> bool:
    """Whether a value can be what a part of a union says; what is not plain may be made of dictionaries and lists."""
    if not _is_plain(member):
        return isinstance(value, (dict, list))
    if get_origin(member) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(member))
    if member is float:
        return _is_number(value)
    if member in _TEXT:
        return isinstance(value, str)
    if member in _WORDS:
        return type(value) is member
    return isinstance(value, list) and all(fits(one, _sequence_of(member)) for one in value)


def _word_for(member: Any) -> str:
    if get_origin(member) is Literal:
        return " or ".join(str(choice) for choice in get_args(member))
    if member in _WORDS:
        return _WORDS[member]
    of = {"a whole number": "whole numbers", "a number": "numbers", "text": "text"}.get(in_words(_sequence_of(member)))
    return f"a list of {of}" if of else "a list"
