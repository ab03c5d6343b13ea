"""A folder of one's own images -> records."""

import os
import sys
from pathlib import Path

import pytest

from datamodules.errors import UserError
from datamodules.folder import Folder
from tests.datamodules.helpers import save_mask


def summary(data: Folder) -> list[tuple[str, int | None, str | None]]:
    return [
        (
            record.image_path.relative_to(data.root).as_posix(),
            record.label,
            record.mask_path and record.mask_path.relative_to(data.root).as_posix(),
        )
        for record in data.records
    ]


def test_all_images_unlabelled(photos: Path) -> None:
    data = Folder(photos / "ok")
    assert summary(data) == [("a.jpg", None, None), ("sub/b.PNG", None, None)]
    assert data.category_names == ["ok"]
    assert (data.name, data.title) == ("ok", "ok")
    assert not data.has_labels
    assert not data.has_masks


def test_a_category_may_look_like_a_number(photos: Path) -> None:
    assert Folder(photos, category=4711).category_names == ["4711"]  # type: ignore[arg-type] # as Hydra reads it
    assert Folder(photos, category=0).category_names == ["0"]  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_names_that_are_no_utf_8(photos: Path) -> None:
    folder = photos / "ok"
    before = Folder(folder).fingerprint()
    (folder / "a.jpg").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))
    renamed = Folder(folder)
    assert renamed.fingerprint()["sha256"] != before["sha256"]
    assert renamed.fingerprint()["bytes"] == before["bytes"]


def test_hidden_files_and_other_files_are_left_out(photos: Path) -> None:
    assert len(Folder(photos).records) == 6  # 4 images and 2 masks


def test_labels_and_masks(photos: Path) -> None:
    data = Folder(photos, category="cup", normal_dir="ok", anomalous_dir="bad", mask_dir="gt")
    assert summary(data) == [
        ("ok/a.jpg", 0, None),
        ("ok/sub/b.PNG", 0, None),
        ("bad/a.jpg", 1, "gt/a.png"),
        ("bad/sub/b.bmp", 1, "gt/sub/b_mask.png"),
    ]
    assert {record.category for record in data.records} == {"cup"}
    assert data.has_labels
    assert data.has_masks


def test_labels_without_masks(photos: Path) -> None:
    data = Folder(photos, anomalous_dir="bad")
    assert [record.label for record in data.records] == [1, 1]
    assert not data.has_masks


def test_masks_of_normal_images_are_no_orphans(photos: Path) -> None:
    (photos / "bad/a.jpg").unlink()
    data = Folder(photos, normal_dir="ok", anomalous_dir="bad", mask_dir="gt")  # gt/a.png is left for ok/a.jpg
    assert [record.mask_path and record.mask_path.name for record in data.records] == [None, None, "b_mask.png"]


def test_mistakes(photos: Path) -> None:
    with pytest.raises(UserError, match=r"folder good below .*photos, but there is none"):
        _ = Folder(photos, normal_dir="good").records
    with pytest.raises(UserError, match="anomalous_dir beside mask_dir=gt"):
        _ = Folder(photos, normal_dir="ok", mask_dir="gt").records
    with pytest.raises(UserError, match=r"share no image, but both hold .*bad/a\.jpg"):
        _ = Folder(photos, normal_dir=".", anomalous_dir="bad").records
    with pytest.raises(UserError, match="split to be one of test, but got 'train'"):
        _ = Folder(photos, split="train").records
    with pytest.raises(UserError, match=r"Expected none in .*none .*no such folder"):
        _ = Folder(photos / "none").records
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match="images of category empty"):
        _ = Folder(photos / "empty").records
    save_mask(photos / "gt/c.png", columns=1)
    with pytest.raises(UserError, match=r"1 of 3 have none, the first is .*gt/c\.png"):
        _ = Folder(photos, anomalous_dir="bad", mask_dir="gt").records
    (photos / "gt/c.png").unlink()
    (photos / "gt/a.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 have none, the first is .*bad/a\.jpg"):
        _ = Folder(photos, anomalous_dir="bad", mask_dir="gt").records
