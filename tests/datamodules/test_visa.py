"""VisA's layout -> records."""

import shutil
from pathlib import Path

import pytest

from datamodules.errors import UserError
from datamodules.visa import VisA

pytestmark = pytest.mark.filterwarnings("ignore:.*is there only in part")


def edit(root: Path, old: str, new: str) -> None:
    path = root / "split_csv/1cls.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_records_in_the_order_of_the_rows(visa_root: Path) -> None:
    data = VisA(visa_root, categories=["pcb1", "candle"])
    found = [(record.image_path.relative_to(visa_root).as_posix(), record.label) for record in data.records]
    inside = [("Anomaly/001", 1), ("Anomaly/000", 1), ("Normal/0003", 0), ("Normal/0002", 0)]
    assert found == [
        (f"{category}/Data/Images/{name}.JPG", label) for category in ("candle", "pcb1") for name, label in inside
    ]
    masks = [record.mask_path for record in data.records[:4]]
    folder = visa_root / "candle/Data/Masks/Anomaly"
    assert masks == [folder / "001.png", folder / "000.png", None, None]
    assert data.has_labels
    assert data.has_masks


def test_train_split(visa_root: Path) -> None:
    records = VisA(visa_root, split="train").records
    assert [(record.image_path.name, record.label) for record in records] == [("0001.JPG", 0)] * 2


def test_partial_data_set(visa_root: Path) -> None:
    shutil.rmtree(visa_root / "pcb1")
    data = VisA(visa_root)
    with pytest.warns(UserWarning, match=r"VisA in .* 1 categories are used, 11 are missing \(capsules, cashew"):
        assert {record.category for record in data.records} == {"candle"}
    with pytest.raises(UserError, match="Expected categories to be among candle, but got pcb1"):
        _ = VisA(visa_root, categories=["pcb1"]).records


def test_folders_without_rows_are_no_categories(visa_root: Path) -> None:
    (visa_root / "pcb9").mkdir()
    with pytest.warns(UserWarning, match="only in part"):
        assert VisA(visa_root).category_names == ["candle", "pcb1"]


def test_category_without_rows_of_the_split(visa_root: Path) -> None:
    edit(visa_root, "candle,train", "candle,test")
    with pytest.raises(UserError, match=r"images of category candle \(train split\)"):
        _ = VisA(visa_root, split="train").records


def test_byte_order_mark_and_empty_lines(visa_root: Path) -> None:
    path = visa_root / "split_csv/1cls.csv"
    path.write_text("\ufeff" + path.read_text() + "\n,,,,\n", encoding="utf-8")
    assert len(VisA(visa_root, ["pcb1"]).records) == 4


def test_missing_csv(visa_root: Path) -> None:
    (visa_root / "split_csv/1cls.csv").unlink()
    with pytest.raises(UserError, match=r"split of VisA in .*1cls\.csv, but there is no such file.*\.tar"):
        _ = VisA(visa_root).records


def test_csv_without_columns(visa_root: Path) -> None:
    edit(visa_root, "object,split,label,image,mask", "object,set,label,image,ground_truth")
    with pytest.raises(UserError, match=r"columns object,split,label,image,mask in .*, but split, mask is missing"):
        _ = VisA(visa_root).records


@pytest.mark.parametrize("content", [b"", b"object\xff\xfe"])
def test_csv_that_is_none(visa_root: Path, content: bytes) -> None:
    (visa_root / "split_csv/1cls.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"1cls\.csv"):
        _ = VisA(visa_root).records


def test_rows_whose_files_are_missing(visa_root: Path) -> None:
    (visa_root / "pcb1/Data/Images/Normal/0003.JPG").unlink()
    (visa_root / "pcb1/Data/Masks/Anomaly/000.png").unlink()
    with pytest.raises(UserError, match=r"2 of 6 are missing, the first is .*pcb1/Data/Masks/Anomaly/000\.png"):
        _ = VisA(visa_root).records


def test_anomalous_row_without_mask(visa_root: Path) -> None:
    edit(visa_root, ",pcb1/Data/Masks/Anomaly/000.png", ",")
    with pytest.raises(UserError, match=r"1 of 4 have none, the first is .*pcb1/Data/Images/Anomaly/000\.JPG"):
        _ = VisA(visa_root).records


def test_unknown_label(visa_root: Path) -> None:
    edit(visa_root, "test,anomaly", "test,bad")
    with pytest.raises(UserError, match=r"labels normal or anomaly in .*Anomaly/001\.JPG has 'bad'"):
        _ = VisA(visa_root).records


def test_missing_root_names_the_archive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder\. .*https://amazon-visual-anomaly\.s3.*VisA_20220922\.tar"):
        _ = VisA(tmp_path / "visa").records


@pytest.mark.data
def test_real_excerpt(real_data: Path) -> None:
    data = VisA(real_data / "visa")
    counts = data.fingerprint()["categories"]
    assert {name: (entry["normal"], entry["anomalous"]) for name, entry in counts.items()} == {
        "capsules": (20, 20),
        "macaroni1": (20, 20),
    }
    assert len(VisA(real_data / "visa", split="train").records) == 20


@pytest.mark.parametrize("name", ["../outside.JPG", "{root}/pcb1/Data/Images/Anomaly/001.JPG", "pcb1/../../x.JPG"])
@pytest.mark.parametrize("column", ["image", "mask"])
def test_files_of_the_rows_stay_below_the_root(visa_root: Path, column: str, name: str) -> None:
    folder, suffix = ("Images", "JPG") if column == "image" else ("Masks", "png")
    (visa_root.parent / "outside.JPG").write_bytes(b"")
    edit(visa_root, f"pcb1/Data/{folder}/Anomaly/001.{suffix}", name.format(root=visa_root))
    with pytest.raises(UserError, match=rf"column {column} of .*1cls\.csv to be a path below .*visa, without '\.\.'"):
        _ = VisA(visa_root).records


def test_categories_of_the_rows_stay_below_the_root(visa_root: Path) -> None:
    (visa_root.parent / "x").mkdir()
    for name in ("../x", str(visa_root.parent / "x")):
        edit(visa_root, "pcb1,test", f"{name},test")
        with pytest.raises(UserError, match=r"a category to be a path below .*visa, without '\.\.'"):
            _ = VisA(visa_root).records
        edit(visa_root, f"{name},test", "pcb1,test")


def test_rows_that_repeat_are_refused(visa_root: Path) -> None:
    row = "pcb1,test,normal,pcb1/Data/Images/Normal/0003.JPG,\n"
    edit(visa_root, row, 10 * row)
    with pytest.raises(UserError, match=r"each image once, but .*pcb1/Data/Images/Normal/0003\.JPG is there 10 times"):
        _ = VisA(visa_root).records


def test_rows_that_contradict_each_other_are_refused(visa_root: Path) -> None:
    image = "pcb1/Data/Images/Normal/0003.JPG"
    edit(visa_root, f"pcb1,test,normal,{image},\n", f"pcb1,test,normal,{image},\npcb1,test,anomaly,{image},\n")
    with pytest.raises(UserError, match=r"each image once, but .*0003\.JPG is there 2 times"):
        _ = VisA(visa_root).records


def test_nul_and_columns_that_are_there_twice(visa_root: Path) -> None:
    path = visa_root / "split_csv/1cls.csv"
    text = path.read_text()
    path.write_text(text.replace("object,split,label,image,mask", "object,split,label,image,mask,label"))
    with pytest.raises(UserError, match=r"1cls\.csv, but label is there twice"):
        _ = VisA(visa_root).records
    path.write_text(text.replace("pcb1,test", "pcb1,te\0st"))
    with pytest.raises(UserError, match=r"1cls\.csv to be a CSV file .*NUL"):
        _ = VisA(visa_root).records
