"""Anomaly maps as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.errors import UserError
from src.callbacks.map_writer import MapWriter, map_names
from src.models.method import Scores
from tests.callbacks.helpers import NOBODY, Stage, batch_of, give


def scores(*levels: float, dtype: torch.dtype = torch.float32) -> Scores:
    """A map of 3 x 5 for each level, with a gradient on top."""
    maps = torch.tensor(levels)[:, None, None] + torch.arange(15.0).view(1, 3, 5) / 64
    return Scores(maps.to(dtype), {}, maps.amax(dim=(1, 2)))


def writer_of(folder: Path, images: Sequence[tuple[str, str]]) -> MapWriter:
    """A writer in a run to this folder, over data with these images."""
    writer, data = MapWriter(), SimpleNamespace(image_names=images)
    trainer: Any = SimpleNamespace(default_root_dir=str(folder), datamodule=data)
    writer.on_test_start(trainer, NOBODY)
    return writer


def files(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): np.load(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_each_image_has_its_map_by_category_folder_and_stem(stage: Stage, tmp_path: Path) -> None:
    paths = ["bottle/test/broken_large/000.png", "bottle/test/good/000.png", "bottle/test/good/001.v2.JPG"]
    images = [*(("bottle", path) for path in paths), ("capsules", "capsules/Data/Images/Anomaly/000.JPG")]
    writer, given = writer_of(tmp_path, images), scores(1, 2, 3)
    give(writer, stage, given, batch_of("bottle", paths))
    give(writer, stage, scores(4), batch_of("capsules", ["capsules/Data/Images/Anomaly/000.JPG"]))
    written = files(tmp_path)
    assert sorted(written) == [
        "maps/bottle/broken_large/000.npy",
        "maps/bottle/good/000.npy",
        "maps/bottle/good/001.v2.npy",
        "maps/capsules/Anomaly/000.npy",
    ]
    for name, expected in zip(["broken_large/000", "good/000", "good/001.v2"], given.anomaly_map, strict=True):
        own = written[f"maps/bottle/{name}.npy"]
        assert own.dtype == np.float32
        assert (own == expected.numpy()).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_maps_are_float32_whatever_the_model_gives(dtype: torch.dtype, tmp_path: Path) -> None:
    writer = writer_of(tmp_path, [("bottle", "x/000.png")])
    give(writer, "test", scores(1, dtype=dtype), batch_of("bottle", ["x/000.png"]))
    (own,) = files(tmp_path).values()
    assert own.dtype == np.float32
    np.testing.assert_allclose(own, scores(1).anomaly_map[0].numpy(), rtol=1e-2)


@pytest.mark.parametrize(
    ("paths", "second"),
    [
        (["left/x/000.png", "right/x/000.png"], "maps/photos/right/x/000.png.npy"),
        (["x/000.bmp", "x/000.jpg"], "maps/photos/x/000.jpg.npy"),
    ],
    ids=["folders of one name", "two suffixes"],
)
def test_images_that_ask_for_one_name_are_both_kept(paths: list[str], second: str, tmp_path: Path) -> None:
    writer = writer_of(tmp_path, [("photos", path) for path in paths])
    # In any order: with several processes the second may be written first.
    for path, level in zip(reversed(paths), (2, 1), strict=True):
        give(writer, "predict", scores(level), batch_of("photos", [path]))
    written = files(tmp_path)
    assert sorted(written) == sorted(["maps/photos/x/000.npy", second])
    assert written["maps/photos/x/000.npy"][0, 0] == 1
    assert written[second][0, 0] == 2


def test_an_image_beside_the_root_has_no_folder(tmp_path: Path) -> None:
    give(writer_of(tmp_path, [("photos", "a.png")]), "predict", scores(1), batch_of("photos", ["a.png"]))
    assert list(files(tmp_path)) == ["maps/photos/a.npy"]


@pytest.mark.parametrize(
    "paths",
    [
        ["a/b/x.jpg", "a/b/x.png.png", "b/x.png"],
        ["x.png", "d/x.npy/y.png"],  # the first one's map has the name of the second one's folder
        ["d/x.npy/y.png", "x.png"],
    ],
    ids=["three names", "file, then folder", "folder, then file"],
)
def test_each_image_has_a_map_of_its_own_whatever_the_names(paths: list[str], tmp_path: Path) -> None:
    writer = writer_of(tmp_path, [("photos", path) for path in paths])
    for level, path in enumerate(paths):
        give(writer, "predict", scores(level), batch_of("photos", [path]))
    assert sorted(own[0, 0] for own in files(tmp_path).values()) == list(range(len(paths)))


@pytest.mark.parametrize("second", ["x/A.png", "x/A\u0308.png"])
def test_names_that_a_disk_may_take_for_one_are_apart(second: str, tmp_path: Path) -> None:
    first = "x/a.png" if second == "x/A.png" else "x/\u00c4.png"
    names = map_names([("photos", first), ("photos", second)])
    assert names["photos", first].name == f"{Path(first).stem}.npy"
    assert names["photos", second].name == f"{Path(second).name}.npy"


def test_no_map_is_written_outside(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"path below maps, without '\.\.', but got"):
        writer_of(tmp_path / "run", [("x", "../a.png")])


@pytest.mark.parametrize("category", ["../../x", "/tmp/x", "C:\\x", "~root", "..", "a long name " * 40, "螺丝" * 200])
def test_a_category_of_any_words_is_a_folder_below(category: str, tmp_path: Path) -> None:
    names = map_names([(category, "a.png"), ("x", "a.png")])
    folder = tmp_path / "maps"
    for name in names.values():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        assert (folder / name).resolve().is_relative_to(folder)
    assert len(set(names.values())) == 2


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "A", "b.npy", "x", "x.png"]), min_size=1, max_size=3), unique_by=tuple))
def test_no_two_images_ever_share_a_map(parts: list[list[str]]) -> None:
    images = [("x", "/".join([*folders, f"{name}.png"])) for *folders, name in parts]
    names = [str(name).casefold() for name in map_names(images).values()]
    assert len(set(names)) == len(images)
    assert not any(other.startswith(f"{name}/") for name in names for other in names)
