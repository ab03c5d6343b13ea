"""What a release states in several places is the same in each."""

from __future__ import annotations

import re

from tests.golden_reference import ROOT


def test_the_citation_has_the_version_of_the_package() -> None:
    package, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff"))
    version = re.findall(r'^version = "(.+)"$', package, re.MULTILINE)
    assert version == re.findall(r"^version: (.+)$", citation, re.MULTILINE)
    assert len(version) == 1
