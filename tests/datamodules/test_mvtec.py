"""MVTec AD's layout -> records."""

import shutil
import warnings
from pathlib import Path

import pytest

from datamodules.errors import UserError
from datamodules.mvtec import MVTec
from tests.datamodules.helpers import save_image, save_mask

pytestmark = pytest.mark.filterwarnings("ignore:.*is there only in part")


def names(data: MVTec) -> list[str]:
    return [record.image_path.relative_to(data.root).as_posix() for record in data.records]


def test_records_in_published_order_with_masks_by_name(mvtec_root: Path) -> None:
    data = MVTec(mvtec_root, categories=["screw", "bottle"])
    assert data.category_names == ["bottle", "screw"]
    inside = ["broken/000", "good/000", "good/001", "scratch/000", "scratch/001"]
    assert names(data) == [f"{category}/test/{name}.png" for category in ("bottle", "screw") for name in inside]
    assert [record.label for record in data.records] == [1, 0, 0, 1, 1] * 2
    for record in data.records:
        if record.label == 0:
            assert record.mask_path is None
        else:
            defect, file = record.image_path.parts[-2:]
            folder = mvtec_root / record.category / "ground_truth" / defect
            assert record.mask_path == folder / file.replace(".png", "_mask.png")
    assert data.has_labels
    assert data.has_masks


def test_masks_without_suffix_and_in_another_format(mvtec_root: Path) -> None:
    folder = mvtec_root / "bottle/ground_truth/scratch"
    (folder / "000_mask.png").rename(folder / "000.png")
    (folder / "001_mask.png").unlink()
    save_mask(folder / "001_mask.BMP", columns=2)
    masks = [record.mask_path for record in MVTec(mvtec_root, ["bottle"]).records if record.label == 1]
    assert [mask.name for mask in masks if mask] == ["000_mask.png", "000.png", "001_mask.BMP"]


def test_masks_of_normal_images(mvtec_root: Path) -> None:
    save_mask(mvtec_root / "bottle/ground_truth/good/001_mask.png", columns=0)
    good = [record for record in MVTec(mvtec_root, ["bottle"]).records if record.label == 0]
    assert [record.mask_path and record.mask_path.name for record in good] == [None, "001_mask.png"]


def test_train_split(mvtec_root: Path) -> None:
    data = MVTec(mvtec_root, split="train")
    assert names(data) == ["bottle/train/good/000.png", "screw/train/good/000.png"]
    assert {record.label for record in data.records} == {0}
    assert not data.has_masks


def test_train_folder_is_needed_for_the_train_split_only(mvtec_root: Path) -> None:
    shutil.rmtree(mvtec_root / "screw/train")
    assert len(MVTec(mvtec_root).records) == 10
    with pytest.raises(UserError, match=r"images of category screw \(train split\) .*found none"):
        _ = MVTec(mvtec_root, split="train").records


def test_own_categories_come_last_and_stray_folders_do_not_count(mvtec_root: Path) -> None:
    save_image(mvtec_root / "a_nut/test/good/0.png", 0)
    (mvtec_root / "a_note").mkdir()
    save_image(mvtec_root / "a_note/0.png", 0)
    with pytest.warns(UserWarning, match="there only in part"):
        assert MVTec(mvtec_root).category_names == ["bottle", "screw", "a_nut"]


def test_partial_data_set_warns_once_and_says_what_is_missing(mvtec_root: Path) -> None:
    data = MVTec(mvtec_root)
    with pytest.warns(UserWarning, match=r"13 are missing \(cable, capsule,"):
        data.setup("test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.records) == 10
    assert len(data.missing_categories) == 13
    assert MVTec(mvtec_root, ["screw"]).missing_categories == []


@pytest.mark.filterwarnings("error")
def test_own_data_in_this_layout_misses_nothing(tmp_path: Path) -> None:
    save_image(tmp_path / "gear/test/good/0.png", 0)
    data = MVTec(tmp_path)
    assert data.category_names == ["gear"]
    assert data.missing_categories == []


def test_without_ground_truth_there_are_labels_only(mvtec_root: Path) -> None:
    shutil.rmtree(mvtec_root / "screw/ground_truth")
    data = MVTec(mvtec_root, ["screw"])
    assert data.has_labels
    assert not data.has_masks
    with pytest.raises(UserError, match=r"3 of 6 have none, the first is .*screw/test/broken/000\.png"):
        _ = MVTec(mvtec_root, ["bottle", "screw"]).records


def test_missing_mask(mvtec_root: Path) -> None:
    (mvtec_root / "screw/ground_truth/scratch/001_mask.png").unlink()
    with pytest.raises(UserError, match=r"mask for each anomalous image, but 1 of 6 .*screw/test/scratch/001\.png"):
        _ = MVTec(mvtec_root).records


def test_masks_without_image(mvtec_root: Path) -> None:
    for name in ("002", "003"):
        save_mask(mvtec_root / f"screw/ground_truth/scratch/{name}_mask.png", columns=1)
    with pytest.raises(UserError, match=r"2 of 5 have none, the first is .*scratch/002_mask\.png"):
        _ = MVTec(mvtec_root).records


def test_two_masks_for_one_image(mvtec_root: Path) -> None:
    save_mask(mvtec_root / "screw/ground_truth/scratch/001.png", columns=1)
    with pytest.raises(UserError, match=r"one mask for image scratch/001, but found .*001\.png and .*001_mask\.png"):
        _ = MVTec(mvtec_root).records


def test_image_outside_a_defect_folder(mvtec_root: Path) -> None:
    save_image(mvtec_root / "screw/test/000.png", 0)
    with pytest.raises(UserError, match=r"test/good and test/<defect>, but found .*screw/test/000\.png"):
        _ = MVTec(mvtec_root).records


def test_empty_category(mvtec_root: Path) -> None:
    (mvtec_root / "cable/test/good").mkdir(parents=True)
    with pytest.raises(UserError, match=r"images of category cable \(test split\)"):
        _ = MVTec(mvtec_root).records


@pytest.mark.parametrize("folder", ["nowhere", "empty", "mvtec/screw"])
def test_no_data(mvtec_root: Path, folder: str) -> None:
    (mvtec_root.parent / "empty").mkdir()
    with pytest.raises(UserError, match=r"Expected MVTec AD in .*<category>/test/<defect>.*https://www\.mvtec\.com"):
        _ = MVTec(mvtec_root.parent / folder).records


@pytest.mark.data
def test_real_excerpt(real_data: Path) -> None:
    data = MVTec(real_data / "mvtec")
    counts = data.fingerprint()["categories"]
    assert {name: (entry["normal"], entry["anomalous"]) for name, entry in counts.items()} == {
        "bottle": (10, 18),
        "screw": (10, 20),
    }
    assert len(data.missing_categories) == 13
    assert len(MVTec(real_data / "mvtec", split="train").records) == 12


def test_a_loop_below_a_defect_counts_nothing_twice(mvtec_root: Path) -> None:
    expected = MVTec(mvtec_root).records
    (mvtec_root / "bottle/test/good/loop").symlink_to("../../..")  # to all of the data set
    (mvtec_root / "bottle/test/all_of_it").symlink_to("..")
    assert MVTec(mvtec_root).records == expected


def test_a_defect_that_is_linked_into_good_is_refused(mvtec_root: Path) -> None:
    (mvtec_root / "bottle/test/good/002.png").symlink_to("../broken/000.png")
    with pytest.raises(
        UserError, match=r"broken/000\.png \(bottle, anomalous\) and .*good/002\.png \(bottle, normal\)"
    ):
        _ = MVTec(mvtec_root).records


def test_two_suffixes_and_one_mask_are_refused(mvtec_root: Path) -> None:
    save_image(mvtec_root / "bottle/test/broken/000.jpg", seed=77)
    with pytest.raises(UserError, match=r"broken/000\.jpg and .*broken/000\.png share .*000_mask\.png"):
        _ = MVTec(mvtec_root).records


def test_a_category_under_two_names_is_refused(mvtec_root: Path) -> None:
    (mvtec_root / "bottle_again").symlink_to("bottle")
    with pytest.raises(UserError, match=r"bottle_again, anomalous.* are one file"):
        _ = MVTec(mvtec_root).records
    assert len(MVTec(mvtec_root, ["bottle_again"]).records) == 5


def test_masks_that_are_links_to_one_file_are_kept(mvtec_root: Path) -> None:
    (mvtec_root / "bottle/ground_truth/scratch/001_mask.png").unlink()
    (mvtec_root / "bottle/ground_truth/scratch/001_mask.png").symlink_to("000_mask.png")
    assert sum(record.mask_path is not None for record in MVTec(mvtec_root, ["bottle"]).records) == 3


def test_categories_by_number(mvtec_root: Path) -> None:
    (mvtec_root / "bottle").rename(mvtec_root / "7")
    assert MVTec(mvtec_root, [7]).category_names == ["7"]  # type: ignore[list-item] # as Hydra reads it
    with pytest.raises(UserError, match=r"each of categories to be text, but got \['7'\]"):
        _ = MVTec(mvtec_root, [["7"]]).category_names  # type: ignore[list-item]
