"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest

from tests.cli import Cli
from tests.golden_reference import Golden

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


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


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs a command in this process; results go below the test's folder."""
    return Cli(monkeypatch, capsys, tmp_path)
