"""What a page holds, read back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def facts_of(folder: Path) -> dict[str, Any]:
    """What the page's script is given: cases, curves, histograms, cards."""
    [block] = re.findall(r'<script type="application/json" id="description">(.*?)</script>', _page(folder), re.DOTALL)
    return dict(json.loads(block))


def pictures_of(folder: Path) -> dict[str, list[str]]:
    """The pictures of each shown case, by its number."""
    blocks = re.findall(r'<script type="application/json" data-pictures.*?>(.*?)</script>', _page(folder), re.DOTALL)
    return {number: pictures for block in blocks for number, pictures in json.loads(block).items()}


def _page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")
