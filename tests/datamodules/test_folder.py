"""A folder of one's own images -> records."""

import os
import sys
from pathlib import Path

import pytest

from datamodules.errors import UserError
from datamodules.folder import Folder
from tests.datamodules.helpers import save_image, save_mask


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


# Links, hostile names


def test_a_loop_of_links_ends_and_each_file_counts_once(photos: Path) -> None:
    expected = summary(Folder(photos, normal_dir="ok", anomalous_dir="bad"))
    (photos / "ok/loop").symlink_to("..")  # it holds bad, whose images would count as normal
    (photos / "bad/a_loop").symlink_to(".")
    (photos / "ok/again").symlink_to("sub")
    assert summary(Folder(photos, normal_dir="ok", anomalous_dir="bad")) == expected


def test_links_to_folders_elsewhere_are_followed_but_not_back(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "shelf").mkdir()
    (photos / "ok").rename(tmp_path / "shelf/ok")
    (photos / "ok").symlink_to(tmp_path / "shelf/ok")
    (tmp_path / "shelf/ok/back").symlink_to(photos)  # from the shelf to all of the data set, bad included
    assert summary(Folder(photos, normal_dir="ok")) == [("ok/a.jpg", 0, None), ("ok/sub/b.PNG", 0, None)]


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_an_image_with_two_names_counts_once(photos: Path, link: str) -> None:
    if link == "hard":
        (photos / "ok/0_first.jpg").hardlink_to(photos / "ok/a.jpg")
    else:
        (photos / "ok/0.jpg").symlink_to("a.jpg")
    expected = [("ok/a.jpg", 0, None), ("ok/sub/b.PNG", 0, None)]  # the real name, the short one
    assert summary(Folder(photos, normal_dir="ok")) == expected
    with pytest.warns(UserWarning, match=r"1 images are there under another name too and count once, .*ok/0"):
        assert len(Folder(photos / "ok").records) == 2


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_one_image_with_two_labels_is_refused(photos: Path, link: str) -> None:
    other = photos / "ok/c.jpg"
    other.hardlink_to(photos / "bad/a.jpg") if link == "hard" else other.symlink_to("../bad/a.jpg")
    with pytest.raises(UserError, match=r"one category and label an image, but .* are one file; remove one") as error:
        _ = Folder(photos, normal_dir="ok", anomalous_dir="bad").records
    assert "ok/c.jpg (photos, normal)" in str(error.value)
    assert "bad/a.jpg (photos, anomalous)" in str(error.value)


def test_one_mask_for_two_images_is_refused(photos: Path) -> None:
    save_image(photos / "bad/a.png", seed=9)
    with pytest.raises(UserError, match=r"mask of its own .*bad/a\.jpg and .*bad/a\.png share .*gt/a\.png"):
        _ = Folder(photos, anomalous_dir="bad", mask_dir="gt").records
    assert len(Folder(photos, anomalous_dir="bad").records) == 3  # without masks nothing is wrong


@pytest.mark.parametrize("kind", ["fifo", "dangling link"])
def test_what_has_an_images_name_and_is_no_file_is_named(photos: Path, kind: str) -> None:
    path = photos / "ok/c.png"
    path.symlink_to("nowhere.png") if kind == "dangling link" else os.mkfifo(path)
    with pytest.raises(UserError, match=r"an image file, but .*ok/c\.png is"):
        _ = Folder(photos / "ok").records


def test_a_folder_with_an_images_name_is_a_folder(photos: Path) -> None:
    (photos / "ok/sub").rename(photos / "ok/sub.png")
    assert [name for name, *_ in summary(Folder(photos / "ok"))] == ["a.jpg", "sub.png/b.PNG"]


def test_a_folder_that_cannot_be_read_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:  # permissions don't stop root, who may run the tests
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"read all folders .*ok/sub says: Permission denied"):
        _ = Folder(photos / "ok").records


@pytest.mark.parametrize("category", ["../../x", "/tmp/x", "a/../../b", "..\\x", "a\0b"])
def test_categories_stay_below(photos: Path, category: str) -> None:
    with pytest.raises(UserError, match=r"a category to be a path below .*photos"):
        _ = Folder(photos, category=category).records


@pytest.mark.parametrize("category", ["", " ", "a\nb", "a\tb", "a\x1b[2Jb", "a\u2028b"])
def test_categories_are_a_line_of_text(photos: Path, category: str) -> None:
    with pytest.raises(UserError, match=r"Expected a category ") as error:
        _ = Folder(photos, category=category).records
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}, True])
@pytest.mark.parametrize("option", ["category", "normal_dir", "mask_dir"])
def test_options_that_are_no_text(photos: Path, option: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"Expected {option} to be text, but got"):
        _ = Folder(photos, **{"anomalous_dir": "bad", option: value}).records  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["normal_dir", "anomalous_dir", "mask_dir"])
@pytest.mark.parametrize("value", ["../photos/ok", "{root}/ok"])
def test_folders_stay_below_the_root(photos: Path, option: str, value: str) -> None:
    value = value.format(root=photos)
    with pytest.raises(UserError, match=rf"{option} to be a path below .*photos, without '\.\.'"):
        _ = Folder(photos, **{"anomalous_dir": "bad", option: value}).records  # type: ignore[arg-type]
