"""The line that says what was trained and tested, on data sets made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import UserError
from datamodules.folder import Folder
from datamodules.mvtec import MVTec
from src.run.protocol import DataUse, Protocol, describe_use, shared_categories
from tests.datamodules.helpers import save_image


def use(name: str = "visa", **changes: Any) -> DataUse:
    """All of VisA, unless told otherwise."""
    whole = DataUse(
        name=name,
        title={"visa": "VisA", "mvtec": "MVTec AD"}[name],
        split="test",
        categories=["candle", "capsules", "cashew", "pcb1"],
        held_out=[],
        images=2162,
        is_whole=True,
    )
    return whole | changes  # type: ignore[return-value]


def line(trained_on: DataUse | None, tested_on: DataUse, trainable: bool = True) -> str:
    return Protocol(trainable, trained_on, tested_on).line


def part(name: str, *categories: str, **changes: Any) -> DataUse:
    return use(name, categories=list(categories), images=20, is_whole=False, **changes)


MVTEC = use("mvtec", images=1725, categories=["bottle"])


def test_line_of_whole_data_sets() -> None:
    assert line(MVTEC, use()) == "train MVTec AD (test split, 1725 images) -> test VisA (2162 images)"


def test_line_of_parts_names_up_to_three_categories() -> None:
    assert line(part("mvtec", "bottle"), part("visa", "candle", "pcb1", "pcb2")) == (
        "train MVTec AD (test split, 20 images of bottle) -> test VisA (20 images of candle, pcb1, pcb2)"
    )
    assert line(MVTEC, part("visa", "a", "b", "c", "d")).endswith("-> test VisA (20 images of 4 categories)")


def test_line_names_the_split_that_is_not_the_usual_one() -> None:
    assert line(MVTEC | {"split": "train"}, use(split="train")) == (
        "train MVTec AD (train split, 1725 images) -> test VisA (train split, 2162 images)"
    )


def test_line_of_a_frozen_model() -> None:
    assert line(None, use(), trainable=False) == "no training (frozen CLIP) -> test VisA (2162 images)"


def test_line_of_a_checkpoint_that_says_nothing() -> None:
    assert line(None, use()) == "trained on unknown data -> test VisA (2162 images)"


def test_leakage_is_the_categories_that_both_have() -> None:
    trained, tested = part("visa", "candle", "pcb1"), part("visa", "pcb1", "pcb2", "candle")
    assert Protocol(True, trained, tested).leaked == ["pcb1", "candle"]


def test_held_out_categories_leak_too() -> None:
    trained = part("visa", "candle", held_out=["pcb1"])
    assert Protocol(True, trained, part("visa", "pcb1", "pcb2")).leaked == ["pcb1"]


@pytest.mark.parametrize(
    ("trained_on", "tested_on"),
    [(None, use()), (use("mvtec"), use("visa")), (part("visa", "candle"), part("visa", "pcb1"))],
    ids=["unknown", "same categories of another data set", "other categories"],
)
def test_no_leakage(trained_on: DataUse | None, tested_on: DataUse) -> None:
    protocol = Protocol(True, trained_on, tested_on)
    protocol.refuse_leakage()
    assert protocol.leaked == []


def test_leakage_is_refused_by_name() -> None:
    protocol = Protocol(True, part("visa", "candle", "pcb1"), use())
    with pytest.raises(UserError, match=r"2 tested categories of VisA .*\(candle, pcb1\).*allow_leakage=true"):
        protocol.refuse_leakage()


def test_description_holds_line_and_leakage() -> None:
    protocol = Protocol(True, part("visa", "candle"), use())
    assert protocol.describe() == {
        "line": "train VisA (test split, 20 images of candle) -> test VisA (2162 images)",
        "trained_on": part("visa", "candle"),
        "tested_on": use(),
        "leaked_categories": ["candle"],
        "shared_images": {},
        "cut_short_by": [],
        "training_cut_short_by": [],
        "shots": 0,
    }


# From a data module


def mvtec(root: Path, *categories: str, **options: Any) -> MVTec:
    """Each category has two test images and one of train."""
    for category in categories:
        for name in ("test/good/000.png", "test/broken/000.png", "train/good/000.png"):
            save_image(root / category / name, seed=0)
    data = MVTec(root, num_workers=0, **options)
    data.setup("test")
    return data


def test_use_of_a_complete_data_set(tmp_path: Path) -> None:
    data = mvtec(tmp_path, *MVTec.published)
    assert describe_use(data) == DataUse(
        name="mvtec",
        title="MVTec AD",
        split="test",
        categories=list(MVTec.published),
        held_out=[],
        images=30,
        is_whole=True,
    )


def test_use_of_chosen_categories_and_split(tmp_path: Path) -> None:
    described = describe_use(mvtec(tmp_path, *MVTec.published, categories=["screw", "bottle"], split="train"))
    assert described["categories"] == ["bottle", "screw"]
    assert (described["split"], described["images"], described["is_whole"]) == ("train", 2, False)


def test_held_out_categories_are_not_among_the_trained(tmp_path: Path) -> None:
    described = describe_use(mvtec(tmp_path, *MVTec.published, val_categories=["screw"]))
    assert described["categories"] == [name for name in MVTec.published if name != "screw"]
    assert (described["held_out"], described["images"], described["is_whole"]) == (["screw"], 28, False)


@pytest.mark.filterwarnings("ignore:MVTec AD in")
def test_a_data_set_that_is_there_in_part_is_not_whole(tmp_path: Path) -> None:
    assert describe_use(mvtec(tmp_path, "bottle"))["is_whole"] is False


def test_all_that_is_there_asked_for_by_name_is_not_whole_either(tmp_path: Path) -> None:
    assert describe_use(mvtec(tmp_path, "bottle", categories=["bottle"]))["is_whole"] is False


def test_own_images_are_whole(tmp_path: Path) -> None:
    save_image(tmp_path / "photos" / "a.png", seed=0)
    data = Folder(tmp_path / "photos", num_workers=0)
    data.setup("predict")
    described = describe_use(data)
    assert (described["title"], described["images"], described["is_whole"]) == ("photos", 1, True)


# Leakage through copies


@pytest.fixture
def trained_and_tested(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of bitmaps, all of one size."""
    for number in range(6):
        save_image(tmp_path / ("trained" if number < 3 else "tested") / f"{number}.bmp", seed=number)
    return tmp_path / "trained", tmp_path / "tested"


@pytest.mark.parametrize("way", ["copy", "hard link", "symbolic link"])
def test_images_of_one_content_leak_under_any_name(trained_and_tested: tuple[Path, Path], way: str) -> None:
    trained, tested = trained_and_tested
    source, other = tested / "4.bmp", trained / "sub" / "another.png"
    assert shared_categories(Folder(trained), Folder(tested)) == {}
    other.parent.mkdir()
    if way == "copy":
        other.write_bytes(source.read_bytes())
    else:
        other.hardlink_to(source) if way == "hard link" else other.symlink_to(source)
    shared = shared_categories(Folder(trained), Folder(tested))
    assert shared == {"tested": (str(other), str(source))}
    protocol = Protocol(True, describe_use(Folder(trained)), describe_use(Folder(tested)), shared)
    assert protocol.leaked == ["tested"]
    assert protocol.describe()["shared_images"] == {"tested": {"trained": str(other), "tested": str(source)}}
    with pytest.raises(UserError, match=rf"\(tested; {source} is the training image {other}\), .*allow_leakage"):
        protocol.refuse_leakage()


def test_only_images_of_equal_sizes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "trained/a.bmp", seed=0)
    save_image(tmp_path / "tested/a.bmp", seed=0, size=(5, 5))
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("an image was read"))
    assert shared_categories(Folder(tmp_path / "trained"), Folder(tmp_path / "tested")) == {}
