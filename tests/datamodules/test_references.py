"""Which images are references, and how they are read."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules.errors import UserError
from datamodules.folder import Folder
from datamodules.mvtec import MVTec
from datamodules.records import NORMAL, Record
from datamodules.references import References, drawn_references, given_references
from tests.datamodules.helpers import save_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories, of ten train images each and one to test."""
    for category in ("bottle", "screw"):
        for number in range(10):
            save_image(tmp_path / category / "train" / "good" / f"{number:03}.png", seed=number)
        save_image(tmp_path / category / "test" / "good" / "000.png", seed=99)
    return tmp_path


def draw(
    root: Path, categories: list[str], shots: int, seed: int = 0, replacement: bool = False
) -> dict[str, list[str]]:
    data = MVTec(root, split="train", image_size=16, num_workers=0)
    drawn = drawn_references(data, categories, shots, seed, replacement)
    return {name: [record.image_path.stem for record in own] for name, own in drawn.records.items()}


def test_a_draw_depends_on_the_category_and_the_seed_alone(root: Path) -> None:
    both = draw(root, ["bottle", "screw"], shots=4)
    assert draw(root, ["screw"], shots=4) == {"screw": both["screw"]}
    assert draw(root, ["bottle"], shots=2) == {"bottle": both["bottle"][:2]}
    assert both["bottle"] != both["screw"]  # though their files have the same names
    assert draw(root, ["bottle", "screw"], shots=4, seed=1) != both
    moved = root.rename(root.with_name("elsewhere"))
    assert draw(moved, ["bottle", "screw"], shots=4) == both


def test_a_draw_has_no_favourites(root: Path) -> None:
    """Each of ten images is among three of them in 3 of 10 seeds: 300 of 1,000, within four standard deviations."""
    data = MVTec(root, split="train", num_workers=0)
    counts: dict[str, int] = {}
    for seed in range(1000):
        (own,) = drawn_references(data, ["bottle"], 3, seed).records.values()
        assert len({record.image_path for record in own}) == 3
        for record in own:
            counts[record.image_path.stem] = counts.get(record.image_path.stem, 0) + 1
    assert len(counts) == 10
    assert all(abs(count - 300) < 4 * (1000 * 0.3 * 0.7) ** 0.5 for count in counts.values())


def test_with_replacement_an_image_may_come_again(root: Path) -> None:
    drawn = [draw(root, ["bottle"], shots=4, seed=seed, replacement=True)["bottle"] for seed in range(50)]
    repeated = sum(len(set(own)) < 4 for own in drawn)
    assert 15 <= repeated <= 35  # 1 - 10 * 9 * 8 * 7 / 10^4 = 49.6 %, within three standard deviations
    assert len(draw(root, ["bottle"], shots=30, replacement=True)["bottle"]) == 30


def test_only_normal_images_of_the_train_split_are_drawn(root: Path) -> None:
    class WithDefects(MVTec):
        def read_category(self, category: str) -> list[Record]:
            return [record._replace(label=int(i != 3)) for i, record in enumerate(super().read_category(category))]

    (own,) = drawn_references(WithDefects(root, split="train"), ["bottle"], 1, 0).records.values()
    assert [record.label for record in own] == [NORMAL]
    assert own[0].image_path.stem == "003"
    with pytest.raises(UserError, match=r"shots=2 takes as many normal images of bottle.*but there are 1 below"):
        drawn_references(WithDefects(root, split="train"), ["bottle"], 2, 0)


def test_too_many_shots_and_no_train_split(root: Path) -> None:
    with pytest.raises(
        UserError, match=r"shots=11 takes .* of bottle in the train split of MVTec AD, but there are 10"
    ):
        draw(root, ["bottle"], shots=11)
    with pytest.raises(UserError, match="has no train split to draw 1 references from; give references=PATH"):
        drawn_references(Folder(root / "bottle" / "train"), ["bottle"], 1, 0)


def test_pixels_are_those_of_test_images(root: Path) -> None:
    options = {"image_size": 16, "num_workers": 0}
    references = drawn_references(MVTec(root, split="train", **options), ["bottle"], 2, 0)  # type: ignore[arg-type]
    names = [record.image_path for record in references.records["bottle"]]
    tested = root / "bottle" / "test" / "good"
    for path in names:
        (tested / f"copy_{path.name}").write_bytes(path.read_bytes())
    (batch,) = MVTec(root, categories=["bottle"], **options).test_dataloader()  # type: ignore[arg-type]
    expected = {Path(name).name: image for name, image in zip(batch["image_path"], batch["image"], strict=True)}
    for image, path in zip(references.images_of("bottle"), names, strict=True):
        assert torch.equal(image, expected[f"copy_{path.name}"])


# Given


def names_of(references: References) -> dict[str, list[str]]:
    return {name: [record.image_path.name for record in own] for name, own in references.records.items()}


def test_a_flat_folder_is_of_the_category_that_is_asked_for(root: Path) -> None:
    for place in (root / "bottle" / "train" / "good", root / "bottle" / "train"):
        references = given_references(place, image_size=16)
        for name in ("anything", "screw"):
            references.check([name])
            assert len(references.records_of(name)) == references.number == 10
        with pytest.raises(UserError, match=r"nothing says which of cup, screw those in .* are of; put them into"):
            references.check(["cup", "screw"])


def test_folders_are_called_as_their_categories(tmp_path: Path) -> None:
    for name in ("cup/1.png", "cup/2.png", "metal nut/1.png"):
        save_image(tmp_path / name, seed=len(name))
    references = given_references(tmp_path, image_size=16)
    references.check(["cup", "metal nut"])
    assert names_of(references) == {"cup": ["1.png", "2.png"], "metal nut": ["1.png"]}
    assert references.number == "1 to 2"
    assert references.images_of("cup").shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="Expected references of mug, but there are some of cup, metal nut"):
        references.check(["cup", "mug"])


def test_one_named_folder_is_of_no_other_category(tmp_path: Path) -> None:
    save_image(tmp_path / "cup" / "1.png", seed=0)
    references = given_references(tmp_path, image_size=16)
    with pytest.raises(UserError, match="Expected references of mug, but there are some of cup"):
        references.check(["mug"])
    references.check(["cup"])


def test_a_csv_names_the_categories(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name, seed=0)
    with (tmp_path / "good.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image_path", "category"], ["a.png", "cup"]])
    references = given_references(tmp_path / "good.csv", image_size=16)
    assert names_of(references) == {"cup": ["a.png"]}
    with pytest.raises(UserError, match="Expected references of mug"):
        references.check(["mug"])
    with (tmp_path / "unnamed.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image_path"], ["a.png"], ["b.png"]])
    unnamed = given_references(tmp_path / "unnamed.csv", image_size=16)
    unnamed.check(["mug"])
    assert [record.image_path.name for record in unnamed.records_of("mug")] == ["a.png", "b.png"]
    save_image(tmp_path / "june" / "c.png", seed=0)
    (tmp_path / "below.csv").write_text("image_path\njune/c.png\n")
    given_references(tmp_path / "below.csv", image_size=16).check(["mug"])


def test_an_image_and_a_pattern(root: Path) -> None:
    good = root / "bottle" / "train" / "good"
    assert given_references(good / "000.png", image_size=16).number == 1
    given = given_references(good / "00[1-3].png", image_size=16)
    given.check(["bottle"])
    assert given.images_of("bottle").shape == (3, 3, 16, 16)
    assert list(names_of(given_references(root / "*" / "train" / "good" / "*.png"))) == ["bottle", "screw"]


@pytest.mark.parametrize("is_upright", [False, True])
def test_references_are_turned_if_the_tested_images_are(tmp_path: Path, is_upright: bool) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # stored lying, to be seen upright
    halves = Image.new("L", (20, 20))
    halves.paste(255, (0, 0, 10, 20))  # the left half is light, and the upper one of the turned image
    halves.save(tmp_path / "a.png", exif=turned)
    references = given_references(tmp_path, image_size=2, is_upright=is_upright, mean=(0, 0, 0), std=(1, 1, 1))
    image = references.images_of("cup")[0, 0]
    assert (image if is_upright else image.T).round().tolist() == [[1, 1], [0, 0]]


def test_what_is_no_reference(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"Expected images in references=.*nothing, but there is no such file or folder"
    ):
        given_references(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"Expected images in references=.*empty, but found none"):
        given_references(tmp_path / "empty")
    (tmp_path / "lost.csv").write_text("image_path\nlost.png\n")
    with pytest.raises(UserError, match=r"Expected the reference image .*lost\.png, but there is no such file"):
        given_references(tmp_path / "lost.csv")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_text("no image")
    with pytest.raises(UserError, match=r"references: .*1\.png"):
        given_references(tmp_path / "bad").images_of("cup")


# Identity


def test_the_hash_is_of_the_content_wherever_it_lies(root: Path) -> None:
    one = given_references(root / "bottle" / "train", image_size=16)
    before = one.sha256
    one.check(["bottle"])
    assert one.sha256 == before  # whatever the object is called
    other = root / "copies"
    other.mkdir()
    for path in (root / "bottle" / "train" / "good").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert given_references(other, image_size=16).sha256 == before
    save_image(other / "000.png", seed=77)
    assert given_references(other, image_size=16).sha256 != before


def test_provenance_has_each_file_with_its_hash(root: Path) -> None:
    data = MVTec(root, split="train")
    described = drawn_references(data, ["screw"], 1, 3).describe()
    assert {key: described[key] for key in ("shots", "seed", "replacement")} == {
        "shots": 1,
        "seed": 3,
        "replacement": False,
    }
    ((name, [file]),) = described["categories"].items()
    assert (name, set(file)) == ("screw", {"image_path", "sha256"})
    assert (root / file["image_path"]).is_file()


def test_a_tested_reference_is_found_under_any_name(root: Path, recwarn: pytest.WarningsRecorder) -> None:
    references = given_references(root / "bottle" / "train", image_size=16)
    copy = root / "bottle" / "test" / "good" / "another_name.png"
    references.refuse_tested(MVTec(root).records)
    references.warn_of_tested(MVTec(root).records)
    assert not [one for one in recwarn if "references" in str(one.message)]
    copy.write_bytes((root / "bottle" / "train" / "good" / "004.png").read_bytes())
    with pytest.raises(UserError, match=r"another_name\.png is the reference image .*004\.png.*allow_leakage=true"):
        references.refuse_tested(MVTec(root).records)
    with pytest.warns(UserWarning, match=r"images that are references themselves: 1, such as .*another_name\.png"):
        references.warn_of_tested(MVTec(root).records)
