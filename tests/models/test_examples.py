"""The examples in the docstrings run, and each part of a method has one."""

import doctest
import importlib
import pkgutil

import pytest

import src.models

MODULES = [found.name for found in pkgutil.iter_modules(src.models.__path__, "src.models.")]
MODULES += ["src.clip.architecture", "src.clip.text_tower"]

# What others subclass, what needs a whole CLIP, and what a function returns: that is in the example of the function.
ABSTRACT = {"Method", "TextFeatures"}
WITH_BACKBONE = {"SDP", "SDPPlus", "DualPath", "PromptEnsemble"}
RESULTS = {"Level", "Block", "SegmentationLoss", "Sentences"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_functions_and_classes_have_an_example() -> None:
    without = set()
    for module in map(importlib.import_module, MODULES):
        own = [name for name, value in vars(module).items() if _is_public_in(module.__name__, name, value)]
        found = {test.name for test in doctest.DocTestFinder().find(module) if test.examples}
        without |= {name for name in own if f"{module.__name__}.{name}" not in found}
    assert without == ABSTRACT | WITH_BACKBONE | RESULTS


def _is_public_in(module: str, name: str, value: object) -> bool:
    return callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module
