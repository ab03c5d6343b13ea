"""Overlays show where a threshold of the maps marks something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.callbacks.overlay_writer import write_overlays
from src.regions import regions_of
from src.report.cases import Case, Cases, CaseWriter, Picture
from src.report.pictures import OUTLINE_COLOUR, pack_map

NAMES = [("cup", "a.png"), ("cup", "b.png"), ("nut", "a.png")]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The cases of two grey images, one of them under two names of its object."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (120, 80), (128, 128, 128)).save(tmp_path / name)
    writer = CaseWriter(tmp_path / "cases", tmp_path)
    low, high, png = pack_map(np.linspace(0, 1, 64).reshape(8, 8))
    writer.add(
        [(Case(category, path, None, 0.5, None, None, low, high), Picture(None, png, "")) for category, path in NAMES]
    )
    writer.close()
    return tmp_path / "cases"


def overlays(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    files = (folder / "overlays").rglob("*.png")
    return {(file.parent.name, file.name): np.asarray(Image.open(file)) for file in files}


def test_outlines_lie_on_the_overlays_of_their_images(recorded: Path, tmp_path: Path) -> None:
    marked = np.zeros((80, 120))
    marked[20:40, 30:90] = 1
    [region] = regions_of(marked, 0.5)
    with Cases([recorded]) as cases:
        write_overlays(tmp_path / "plain", cases)
        write_overlays(tmp_path / "outlined", cases, {("cup", "a.png"): region.outline})
    plain, outlined = overlays(tmp_path / "plain"), overlays(tmp_path / "outlined")
    assert plain.keys() == outlined.keys() == set(NAMES)
    changed = {name for name in NAMES if (plain[name] != outlined[name]).any()}
    assert changed == {("cup", "a.png")}  # not the same image under the other name
    bright = np.argwhere((outlined["cup", "a.png"] == OUTLINE_COLOUR).all(axis=2))
    assert np.abs(bright.min(axis=0) - (20, 30)).max() <= 1
    assert np.abs(bright.max(axis=0) + 1 - (40, 90)).max() <= 1
    inside = slice(24, 36), slice(34, 86)
    assert (plain["cup", "a.png"][inside] == outlined["cup", "a.png"][inside]).all()
    assert (plain["cup", "a.png"][50:] == outlined["cup", "a.png"][50:]).all()


@pytest.mark.parametrize("is_upright", [True, False])
def test_overlays_lie_on_photos_as_people_see_them(is_upright: bool, tmp_path: Path) -> None:
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[:40, :60] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # by a quarter to the right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned)
    flat = np.zeros((8, 8))
    low, high, png = pack_map(flat)
    writer = CaseWriter(tmp_path / "cases", tmp_path, is_upright=is_upright)
    writer.add([(Case("cup", "a.png", None, 0.5, None, None, low, high), Picture(None, png, ""))])
    writer.close()
    with Cases([tmp_path / "cases"]) as cases:
        write_overlays(tmp_path, cases)
    [overlay] = overlays(tmp_path).values()
    expected = np.rot90(pixels, -1) if is_upright else pixels
    assert (overlay == expected).all()  # a map of one value has no colour
