"""Files of every kind -> arrays, checked against values that were put in by hand."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.errors import UserError
from datamodules.images import load_image, load_mask, open_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
STRIPES = np.repeat(np.array([[0, 0, 1, 1, 0, 1, 0, 0, 1]], dtype=np.uint8), 6, axis=0)


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def test_greyscale_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png"), np.stack([GREY] * 3, axis=-1))


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(STRIPES.astype(bool)).save(tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == "1"
    assert np.array_equal(load_image(tmp_path / "a.png"), np.stack([STRIPES * 255] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_not_blended(tmp_path: Path, mode: str) -> None:
    colour = Image.fromarray(RGB).convert(mode[:-1])
    image = colour.copy()
    image.putalpha(7)
    image.save(tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == mode
    assert np.array_equal(load_image(tmp_path / "a.png"), np.asarray(colour.convert("RGB")))


@pytest.mark.parametrize("transparency", [None, bytes([0, 255, 9, 9])])
@pytest.mark.filterwarnings("error")
def test_palette_gives_its_colours(tmp_path: Path, transparency: bytes | None) -> None:
    colours = np.array([[250, 10, 0], [0, 0, 0], [1, 2, 3], [9, 9, 9]], dtype=np.uint8)
    indices = RNG.integers(0, 4, (6, 9), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(colours.ravel().tolist())
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    assert mode_of(tmp_path / "a.png") == "P"
    assert np.array_equal(load_image(tmp_path / "a.png"), colours[indices])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65278, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path / f"a.{suffix}")[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255]


def test_big_endian_16_bit(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (2, 1), np.array([257, 65535], dtype=">u2").tobytes())
    image.save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif")[0, :, 2].tolist() == [1, 255]


def test_floats_and_32_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)).save(tmp_path / "int.tif")
    with pytest.raises(UserError, match=r"8 or 16 bits, but .*float\.tif holds float32 values from 0\.5"):
        load_image(tmp_path / "float.tif")
    with pytest.raises(UserError, match=r"int\.tif holds int32 values from 70000"):
        load_image(tmp_path / "int.tif")


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.bmp", "a.TIF", "a.tiff", "a.webp", "a.png"])
def test_formats(tmp_path: Path, name: str) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    Image.fromarray(flat).save(tmp_path / name)
    assert np.abs(load_image(tmp_path / name).astype(int) - flat).max() <= 3  # three of the formats are lossy


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        assert image.getexif()[0x0112] == 6
    assert np.array_equal(load_image(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("load", [load_image, load_mask])
def test_cut_off_file_is_named(tmp_path: Path, suffix: str, keep: float, load: object) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(UserError, match=rf"could not decode .*cut\.{suffix}") as error:
        load(path)  # type: ignore[operator]
    assert "\n" not in str(error.value)


def test_text_under_an_image_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"could not decode .*a\.png"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("value", [1, 6, 128, 255])
def test_any_mask_value_above_0_is_anomalous(tmp_path: Path, value: int) -> None:
    Image.fromarray(STRIPES * value).save(tmp_path / "m.png")
    assert np.array_equal(load_mask(tmp_path / "m.png"), STRIPES)


def test_mask_with_class_indices_and_grey_edges(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 2, 3, 4, 5, 6, 40, 255]], dtype=np.uint8)).save(tmp_path / "m.png")
    assert load_mask(tmp_path / "m.png").tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 1), (128, 0, 0)])
@pytest.mark.parametrize("black", [0, 1])
def test_palette_mask_counts_by_colour(tmp_path: Path, black: int, colour: tuple[int, int, int]) -> None:
    palette = [colour, colour]
    palette[black] = (0, 0, 0)
    indices = STRIPES if black == 0 else 1 - STRIPES
    image = Image.new("P", (9, 6))
    image.putdata(indices.ravel().tolist())
    image.putpalette([value for entry in palette for value in entry])
    image.save(tmp_path / "m.png")
    assert np.array_equal(load_mask(tmp_path / "m.png"), STRIPES)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_mask_alpha_is_ignored(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(STRIPES * 255).convert(mode[:-1])
    image.putalpha(Image.fromarray(255 * (1 - STRIPES)))
    image.save(tmp_path / "m.png")
    assert np.array_equal(load_mask(tmp_path / "m.png"), STRIPES)


def test_1_bit_and_16_bit_masks(tmp_path: Path) -> None:
    Image.fromarray(STRIPES.astype(bool)).save(tmp_path / "one.png")
    Image.fromarray(STRIPES.astype(np.uint16)).save(tmp_path / "sixteen.png")
    for name in ("one.png", "sixteen.png"):
        mask = load_mask(tmp_path / name)
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, STRIPES)


# Depth


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_12_bits_in_16_are_scaled_if_the_data_set_says_so(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 2048, 4095]], dtype=np.uint16)).save(tmp_path / f"a.{suffix}")
    told: list[str] = []
    assert load_image(tmp_path / f"a.{suffix}", 12, told.append)[0, :, 1].tolist() == [0, 128, 255]
    assert load_image(tmp_path / f"a.{suffix}", 16, told.append)[0, :, 1].tolist() == [0, 8, 16]
    assert told == []
    assert load_image(tmp_path / f"a.{suffix}", warn=told.append)[0, :, 1].tolist() == [0, 8, 16]
    assert len(told) == 1
    assert "largest value is 4095" in told[0]
    assert "set bits=12" in told[0]


def test_16_bits_that_are_used_need_no_warning(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 4096]], dtype=np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(GREY // 20).save(tmp_path / "b.png")  # dark, but of 8 bits
    told: list[str] = []
    for name in ("a.png", "b.png"):
        load_image(tmp_path / name, warn=told.append)
    assert told == []


def test_values_beyond_the_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 4096]], dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"bits=12, so values of at most 4095, but .*a\.png holds 4096; correct bits"):
        load_image(tmp_path / "a.png", 12)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits(tmp_path: Path, suffix: str, channels: int) -> None:
    colours = np.full((2, 5, channels), 65535, dtype=np.uint16)
    colours[..., :3] = [4095, 2048, 16]  # blue, green, red
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), colours)
    told: list[str] = []
    assert load_image(path, 12)[0, 0].tolist() == [1, 128, 255]
    assert load_image(path, warn=told.append)[0, 0].tolist() == [0, 8, 16]
    assert len(told) == 1
    assert load_mask(path).all()
    colours[..., :3] = [0, 0, 1]
    assert cv2.imwrite(str(path), colours)
    assert load_mask(path).all()  # the upper half of its bits is 0
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="could not decode"):
        load_image(path)


# Files of 8 bits have the pixels that Pillow's conversion to RGB gives, also where it is avoided


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def encoded(image: Image.Image, suffix: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def photo(mode: str) -> Image.Image:
    """Neither flat nor noise, with odd sides, which subsampled colours have to be stretched to."""
    smooth = cv2.resize(RNG.integers(0, 256, (9, 7, 4), dtype=np.uint8), (61, 83), interpolation=cv2.INTER_CUBIC)
    return Image.fromarray(smooth).convert("RGB").convert(mode)


def variants() -> dict[str, bytes]:
    files = {}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        files |= {f"{mode} png": encoded(photo(mode), "png")}
        files |= {f"{mode} tiff": encoded(photo(mode), "tiff")}
    for mode in ("1", "L", "P", "RGB"):
        files |= {f"{mode} bmp": encoded(photo(mode), "bmp")}
    files |= {f"{bits} bits png": encoded(photo("P").quantize(2**bits), "png", bits=bits) for bits in (1, 2, 4)}
    files |= {
        f"{mode} transparent png": encoded(photo(mode), "png", transparency=t)
        for mode, t in (("L", 7), ("RGB", (1, 2, 3)))
    }
    files["animated png"] = encoded(photo("RGB"), "png", save_all=True, append_images=[photo("RGB")])
    files["colour profile png"] = encoded(photo("RGB"), "png", icc_profile=b"none", gamma=0.3)
    files["lossless webp"] = encoded(photo("RGB"), "webp", lossless=True)
    for mode in ("L", "RGB", "CMYK"):
        files[f"{mode} jpeg"] = encoded(photo(mode), "jpeg")
        files[f"{mode} progressive jpeg"] = encoded(photo(mode), "jpeg", progressive=True)
    files["rgb jpeg"] = encoded(photo("RGB"), "jpeg", keep_rgb=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    for mode in ("L", "RGB"):
        files |= {f"turned {mode} {s}": encoded(photo(mode), s, exif=turned) for s in ("png", "jpeg", "tiff")}
    return files


def test_every_kind_of_file_has_pillows_bits(tmp_path: Path) -> None:
    for name, data in variants().items():
        (tmp_path / "a").write_bytes(data)
        expected = by_pillow(data)
        assert np.array_equal(load_image(tmp_path / "a"), expected), name
        assert np.array_equal(load_mask(tmp_path / "a"), expected.any(axis=-1)), name


def test_grey_files_stay_one_channel(tmp_path: Path) -> None:
    for suffix in ("png", "jpeg", "bmp", "tiff"):
        (tmp_path / "a").write_bytes(encoded(photo("L"), suffix))
        assert open_image(tmp_path / "a").mode == "L"
        (tmp_path / "a").write_bytes(encoded(photo("RGB"), suffix))
        assert open_image(tmp_path / "a").mode == "RGB"


@pytest.mark.slow
@pytest.mark.data
def test_every_real_file_has_pillows_bits(real_data: Path) -> None:
    files = [path for path in real_data.rglob("*") if path.suffix.lower() in (".png", ".jpg")]
    assert len(files) > 150
    for path in files:
        expected = by_pillow(path.read_bytes())
        assert np.array_equal(load_image(path), expected), path
