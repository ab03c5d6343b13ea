"""What a release states in several places is the same in each, and what its pages name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.golden_reference import ROOT


def test_the_citation_has_the_version_of_the_package() -> None:
    package, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff"))
    version = re.findall(r'^version = "(.+)"$', package, re.MULTILINE)
    assert version == re.findall(r"^version: (.+)$", citation, re.MULTILINE)
    assert len(version) == 1


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_pictures_of_the_readme_are_light() -> None:
    assert 0 < sum(path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()) < 400_000
