"""Whether a value of a YAML file can be an argument, by the argument's annotation.

Annotations are looked at as far as they are plain: numbers, text, bool, None, Literal, sequences, and unions of these.
"""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_TEXT = (str, Path, os.PathLike)
_SEQUENCES = (list, tuple, set, Sequence, Collection, Iterable)
_WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}
_WORDS |= dict.fromkeys(_TEXT, "text")


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
    if not any(_is_plain(member) for member in members):
        return True
    if isinstance(value, (dict, list)) and not all(_is_plain(member) for member in members):
        return True
    return any(_fits(value, member) for member in members) or is_text(value, annotation)


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
    """The parts of a union, and of the unions in it; a single annotation is its only part."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


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
    if get_origin(member) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(member))
    if member is float:
        return _is_number(value)
    if member in _TEXT:
        return isinstance(value, str)
    if member in _WORDS:
        return type(value) is member
    elements = _sequence_of(member)
    return elements is not None and isinstance(value, list) and all(fits(one, elements) for one in value)


def _word_for(member: Any) -> str:
    if get_origin(member) is Literal:
        return " or ".join(str(choice) for choice in get_args(member))
    if member in _WORDS:
        return _WORDS[member]
    of = {"a whole number": "whole numbers", "a number": "numbers", "text": "text"}.get(in_words(_sequence_of(member)))
    return f"a list of {of}" if of else "a list"
