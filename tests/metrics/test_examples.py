"""The examples in the docstrings run, and every public function and class has one."""

import doctest
import importlib
import pkgutil

import pytest

import src.metrics
from src.metrics import functional

MODULES = [found.name for found in pkgutil.walk_packages(src.metrics.__path__, "src.metrics.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("package", [src.metrics, functional])
def test_public_functions_and_classes_have_an_example(package: object) -> None:
    public = {name: getattr(package, name) for name in package.__all__}  # type: ignore[attr-defined]
    # What a function returns is in the example of the function.
    results = ("BenchmarkResult", "AnomalousSide", "BestF1", "ComponentAreas", "Curve", "CurvePoints")
    without = [name for name, value in public.items() if callable(value) and ">>>" not in (value.__doc__ or "")]
    assert sorted(without) == sorted({*results} & {*public})
