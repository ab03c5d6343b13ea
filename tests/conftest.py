"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest

from datamodules.demo.generate import demo_data as draw_demo_data
from src.clip.backbone import Backbone
from tests.cli import NO_REPORT, Cli
from tests.golden_baselines import Bench
from tests.golden_reference import Golden
from tests.small_clip import build_backbone

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


LONGEST = ("test_wheel", "test_endings", "test_demo", "test_checks", "test_baselines", "test_processes", "test_faults")
"""Files that take minutes: they begin first, or one process would be left alone with the last of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Excerpts of MVTec AD (``mvtec/``) and VisA (``visa/``); the tests that use it are marked ``data``."""
    if not REAL_DATA.is_dir():
        missing = f"the real images are not in {REAL_DATA}"
        # Where the images are known to be, a skipped test would look like a passed one.
        (pytest.fail if os.environ.get("REQUIRE_REAL_DATA") else pytest.skip)(missing)
    return REAL_DATA


@pytest.fixture(scope="session", params=["a", "b"])
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """Both golden files, one after the other."""
    return Golden(request.param, tmp_path_factory.mktemp(f"golden_{request.param}"))


@pytest.fixture(scope="session")
def golden_a(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """The golden file with the published levels."""
    return Golden("a", tmp_path_factory.mktemp("golden_a"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A small CLIP that all tests share: don't change its parameters."""
    return build_backbone(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data, drawn once a session (15 s): the tests that need all of a run use it as `paths.data_dir`."""
    data_dir = tmp_path_factory.mktemp("data")
    draw_demo_data(data_dir / "demo")
    return data_dir


@pytest.fixture(scope="session")
def demo(demo_data: Path) -> list[str]:
    """Overrides for a quiet run of a demo experiment on the CPU."""
    quiet = ["~callbacks.progress", "+trainer.enable_progress_bar=false", NO_REPORT]
    return [f"paths.data_dir={demo_data}", "trainer=cpu", *quiet]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs a command in this process; results go below the test's folder."""
    return Cli(monkeypatch, capsys, tmp_path)


@pytest.fixture(scope="session")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """The baselines' golden files, by name."""
    return {name: Bench(name, tmp_path_factory.mktemp(name)) for name in ("winclip", "april_gan", "anomalyclip")}
