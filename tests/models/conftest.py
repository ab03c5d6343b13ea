"""Fixtures of the models' tests."""

import pytest

from src.clip.backbone import Backbone
from tests.models.helpers import build_backbone


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A small CLIP that all tests share: don't change its parameters."""
    return build_backbone(tmp_path_factory.mktemp("tiny"))
