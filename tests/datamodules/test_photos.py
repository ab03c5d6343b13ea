"""Photos: what a source names, what each is called, and how it is read."""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.errors import UserError
from datamodules.photos import Photos, PhotoTransform, open_photo, tile_boxes
from datamodules.transforms import Transform

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray = PIXELS, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def names(source: Path | str, **options: object) -> list[tuple[str, str]]:
    return Photos(source, **options).image_names  # type: ignore[arg-type]


def test_each_image_is_called_as_the_folder_below_the_source(tmp_path: Path) -> None:
    for name in ("metal nut/1.png", "metal nut/deep/2.png", "Schraube größe 5/1.png", "螺丝/1.png", "loose.png"):
        save(tmp_path / "photos" / name)
    assert names(tmp_path / "photos") == [
        ("Schraube größe 5", "Schraube größe 5/1.png"),
        ("metal nut", "metal nut/1.png"),
        ("metal nut", "metal nut/deep/2.png"),
        ("photos", "loose.png"),
        ("螺丝", "螺丝/1.png"),
    ]
    assert {category for category, _ in names(tmp_path / "photos", category="7")} == {"7"}


def test_a_single_image_and_a_pattern(tmp_path: Path) -> None:
    for name in ("cup/1.png", "cup/2.jpg", "mug/1.png", "cup/notes.txt"):
        (save(tmp_path / name) if name[-3:] != "txt" else (tmp_path / name).write_text("x"))
    assert names(tmp_path / "cup" / "1.png") == [("cup", "1.png")]
    assert names(f"{tmp_path}/*/1.png") == [("cup", "cup/1.png"), ("mug", "mug/1.png")]
    assert names(f"{tmp_path}/cup/*") == [("cup", "1.png"), ("cup", "2.jpg")]


@pytest.mark.parametrize("folder", ["a [b]", "x=1, y='2'", 'say "hi"', "*star"])
def test_a_folder_that_is_there_is_no_pattern(tmp_path: Path, folder: str) -> None:
    save(tmp_path / folder / "1.png")
    assert names(tmp_path / folder) == [(folder, "1.png")]
    assert names(tmp_path / folder / "1.png") == [(folder, "1.png")]


def test_a_csv_names_images_and_categories(tmp_path: Path) -> None:
    images = [save(tmp_path / name) for name in ("a/1.png", "b,c/2.png", "d/3.png")]
    table = tmp_path / "list.csv"
    rows = [["a/1.png", "metal nut"], ["b,c/2.png", 'a "cup", blue'], [str(images[2]), ""], ["a/1.png", "metal nut"]]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["image_path", "category"], *rows])
    with pytest.warns(UserWarning, match="1 images of .* are named twice; each counts once"):
        found = names(table)
    assert found == [('a "cup", blue', "b,c/2.png"), ("d", "d/3.png"), ("metal nut", "a/1.png")]


def test_a_csv_may_name_images_elsewhere(tmp_path: Path) -> None:
    image = save(tmp_path / "elsewhere" / "cup" / "1.png")
    table = tmp_path / "lists" / "list.csv"
    table.parent.mkdir()
    table.write_text(f"image_path\n{image}\n../elsewhere/mug/2.png\n")
    save(tmp_path / "elsewhere" / "mug" / "2.png")
    assert names(table) == [("cup", "cup/1.png"), ("mug", "mug/2.png")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,category\na.png,cup\n", "Expected a column image_path .* found path, category"),
        ("", "Expected a column image_path .* found none"),
        ("image_path\n\n,\n", "Expected an image_path in line"),
        ("image_path\n", "Expected images in source=.*, but found none"),
    ],
)
def test_a_csv_that_names_nothing(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        names(tmp_path / "list.csv")


@pytest.mark.parametrize("source", ["nothing", "*.png", "nothing/*.jpg"])
def test_a_source_without_images(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError, match="Expected images in source="):
        names(tmp_path / source)
    with pytest.raises(UserError, match="but found none"):
        names(tmp_path)


def test_ground_truth_is_no_photo(tmp_path: Path) -> None:
    save(tmp_path / "bottle" / "test" / "broken" / "000.png")
    save(tmp_path / "bottle" / "ground_truth" / "broken" / "000_mask.png")
    save(tmp_path / "candle" / "Data" / "Images" / "Anomaly" / "000.JPG")
    save(tmp_path / "candle" / "Data" / "Masks" / "Anomaly" / "000.png")
    with pytest.warns(UserWarning, match="2 images below .* lie in folders of ground truth"):
        found = names(tmp_path)
    assert found == [("bottle", "bottle/test/broken/000.png"), ("candle", "candle/Data/Images/Anomaly/000.JPG")]
    assert len(names(tmp_path / "candle" / "Data" / "Masks")) == 1  # which the user names


def test_photos_are_turned_as_people_see_them(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / f"{orientation}.png", exif=exif)
        stored = Image.open(path)
        stored.load()
        turned = np.asarray(open_photo(path))
        by_hand = {
            1: PIXELS,
            2: PIXELS[:, ::-1],
            3: PIXELS[::-1, ::-1],
            4: PIXELS[::-1],
            5: PIXELS.transpose(1, 0, 2),
            6: PIXELS.transpose(1, 0, 2)[:, ::-1],
            7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
            8: PIXELS.transpose(1, 0, 2)[::-1],
        }[orientation]
        assert np.array_equal(turned, by_hand), orientation


def test_every_mode_is_read(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    grey = image.convert("L")
    made = {
        "rgba.png": image.convert("RGBA"),
        "grey.png": grey,
        "palette.png": image.quantize(16),
        "cmyk.jpg": image.convert("CMYK"),
        "deep.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "tiny.png": image.resize((5, 5)),
    }
    for name, one in made.items():
        one.save(tmp_path / name)
        photo = open_photo(tmp_path / name)
        assert photo.size == one.size
        assert photo.mode == ("L" if name in ("grey.png", "deep.png") else "RGB")
    assert np.array_equal(np.asarray(open_photo(tmp_path / "rgba.png")), PIXELS)
    assert np.array_equal(np.asarray(open_photo(tmp_path / "deep.png")), np.asarray(grey))


def test_an_animation_gives_its_first_picture(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    told: list[str] = []
    assert np.asarray(open_photo(tmp_path / "a.gif", warn=told.append).convert("L")).max() == 10
    assert told == [f"{tmp_path / 'a.gif'} holds 2 pictures; the first is used"]


def test_photos_that_cannot_be_read_are_left_out_with_a_reason(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    whole = save(tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "phone.HEIC").write_bytes(b"ftypheic")
    batches = list(Photos(tmp_path, category="cup", image_size=8, num_workers=0).predict_dataloader())
    assert [batch["image_path"] for batch in batches] == [["good.png"]]
    reasons = {path: reason for _, path, reason in batches[0]["unreadable"]}
    assert sorted(reasons) == ["cut.png", "phone.HEIC", "text.png"]
    assert "HEIC is not supported" in reasons["phone.HEIC"]


def test_a_photo_that_is_not_there_is_left_out_too(tmp_path: Path) -> None:
    save(tmp_path / "cup" / "1.png")
    (tmp_path / "list.csv").write_text("image_path\ncup/1.png\ncup/2.png\n")
    data = Photos(tmp_path / "list.csv", image_size=8, num_workers=0)
    (batch,) = data.predict_dataloader()
    assert batch["image_path"] == ["cup/1.png"]
    assert "there is no such file" in batch["unreadable"][0][2]
    assert data.fingerprint()["files"] == 2


def test_pixels_are_those_of_a_benchmark(tmp_path: Path) -> None:
    """A photo that need not be turned goes the way of a test image, to the last bit."""
    save(tmp_path / "1.png")
    statistics = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    expected = Transform("default", 16, None, *statistics)(Image.fromarray(PIXELS))["image"]
    assert torch.equal(PhotoTransform(16, *statistics)(open_photo(tmp_path / "1.png"))["image"], expected)


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [(60, 180, 100, 0.2), (100, 100, 100, 0.5), (301, 999, 64, 0), (5, 700, 64, 0.9)],
)
def test_tiles_cover_every_pixel_and_overlap_as_asked(height: int, width: int, tile: int, overlap: float) -> None:
    boxes = tile_boxes(height, width, tile, overlap)
    covered = np.zeros((height, width), int)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert (right - left, bottom - top) == (min(tile, width), min(tile, height))
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1 or (covered.min() > 1 and overlap > 0)
    lefts = sorted({box[0] for box in boxes})
    assert all(b - a <= tile * (1 - overlap) + 1 for a, b in pairwise(lefts))


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0.2), (8, 0.2), (True, 0.2), (64, 1.0), (64, -0.1)])
def test_tiles_that_cannot_be(tmp_path: Path, tile: int, overlap: float) -> None:
    with pytest.raises(UserError, match=r"Expected (tile|overlap) to be"):
        Photos(tmp_path, tile=tile, overlap=overlap)


@pytest.mark.parametrize("category", [" ", "two\nlines", ""])
def test_a_category_is_a_line_of_text(tmp_path: Path, category: str) -> None:
    with pytest.raises(UserError, match="Expected a category to be a line of text"):
        Photos(tmp_path, category=category)


def test_brackets_in_the_folder_that_one_is_in_are_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "[lab]" / "photos" / "cup" / "1.png")
    monkeypatch.chdir(tmp_path / "[lab]")
    assert names("photos/*/*.png") == [("cup", "cup/1.png")]


def test_a_category_of_a_csv_is_a_line_of_text(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('image_path,category\na.png,"two\nlines"\n')
    with pytest.raises(UserError, match=r"a category in line 3 of .*list\.csv to be a line of text"):
        names(tmp_path / "list.csv")


def test_tags_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    save(tmp_path / "bad.png", exif=b"no tags")
    (batch,) = Photos(tmp_path, category="cup", image_size=8, num_workers=0).predict_dataloader()
    assert batch["image_path"] == ["good.png"]
    assert "its EXIF tags can't be read" in batch["unreadable"][0][2]


def test_more_tiles_than_memory_are_refused() -> None:
    transform = PhotoTransform(24, (0, 0, 0), (1, 1, 1), tile=16, overlap=0.95)
    with pytest.raises(UserError, match="take a larger tile or a smaller overlap"):
        transform(Image.new("L", (400, 400)))
