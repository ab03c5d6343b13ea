"""The sentences that describe a normal and an anomalous object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Sentences(NamedTuple):
    """The two sides of one class."""

    normal: list[str]
    anomalous: list[str]


class Prompts:
    """States x templates: each state has a place for the class name, each template one for the state.

    Args:
        normal: states of a flawless object, such as `perfect {}`.
        anomalous: states of a defective object, such as `broken {}`.
        templates: photo descriptions, such as `a photo of the {}.`

    Raises:
        ValueError: a list is empty, or an entry has not exactly one place `{}`.

    Example:
        >>> prompts = Prompts(["perfect {}"], ["broken {}"], ["a photo of a {}.", "a {}."])
        >>> prompts.sentences("cable").anomalous
        ['a photo of a broken cable.', 'a broken cable.']
    """

    def __init__(self, normal: Sequence[str], anomalous: Sequence[str], templates: Sequence[str]) -> None:
        for key, entries in (("normal", normal), ("anomalous", anomalous), ("templates", templates)):
            if not entries:
                raise ValueError(f"{key} is empty; give at least one sentence with a place {{}}")
            for entry in entries:
                if not isinstance(entry, str) or entry.count("{}") != 1:
                    raise ValueError(f"{key}: expected exactly one {{}} in each entry, but got '{entry}'")
        self.normal = list(normal)
        self.anomalous = list(anomalous)
        self.templates = list(templates)

    def sentences(self, class_name: str) -> Sentences:
        """All sentences of a class: for each state, all templates. The class name goes in as the data set spells it."""
        return Sentences(self._expand(self.normal, class_name), self._expand(self.anomalous, class_name))

    def _expand(self, states: list[str], class_name: str) -> list[str]:
        return [
            template.replace("{}", state.replace("{}", class_name)) for state in states for template in self.templates
        ]
