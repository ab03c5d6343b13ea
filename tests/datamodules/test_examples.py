"""The examples in the docstrings of `datamodules` give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import datamodules

MODULES = [module.name for module in pkgutil.walk_packages(datamodules.__path__, "datamodules.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    found = doctest.DocTestFinder().find(importlib.import_module("datamodules.transforms"))
    assert sum(len(test.examples) for test in found) > 5
