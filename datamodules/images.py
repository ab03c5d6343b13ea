"""Files -> pixels: images as 8-bit RGB or grey, masks as {0, 1}.

The orientation tag of EXIF is deliberately not applied: the reference implementation doesn't, and masks are drawn on
the pixels as they are stored.
"""

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from datamodules.errors import UserError

# OpenCV's threads would compete with the loader's workers, and hang in a worker that is forked from them.
cv2.setNumThreads(0)

# Of CLIP's training images, per channel, of values in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

UInt8Array = npt.NDArray[np.uint8]

# What Pillow raises, depending on the format, for a file that is cut off, empty or no image at all.
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)


def open_image(path: Path, bits: int | None = None, warn: Callable[[str], None] = warnings.warn) -> Image.Image:
    """Read and decode an image file of any mode.

    Args:
        path: the file.
        bits: how many of a 16-bit file's bits are used: 12 has 4095 become 255. None for 16. A file of 8 bits is taken
            as it is.
        warn: is called with a line of text when a file looks as if it used fewer bits and ``bits`` does not say so.

    Returns:
        A Pillow image of 8 bits: mode ``L`` for a greyscale file, ``RGB`` for all others. An alpha channel is dropped,
        not blended.

    Raises:
        UserError: the file can't be read, holds floats or integers of more than 16 bits, or values beyond ``bits``.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("L", (30, 20)).save(Path(folder, "grey.png"))
    ...     image = open_image(Path(folder, "grey.png"))
    >>> image.mode, image.size
    ('L', (30, 20))
    """
    image = _decode(path)
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray(_to_8_bits(image, path, bits, warn))


def from_array(
    values: npt.NDArray[Any], name: str, bits: int | None = None, warn: Callable[[str], None] = warnings.warn
) -> Image.Image:
    """Make an image of an array.

    Args:
        values: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), whose alpha is dropped; uint8, uint16, or floating point in
            [0, 1].
        name: of the image, for messages.
        bits: of uint16, see `open_image`.
        warn: see `open_image`.

    Returns:
        A Pillow image of 8 bits, mode ``L`` or ``RGB``.

    Raises:
        UserError: the array is no image.

    >>> from_array(np.full((4, 6, 3), 0.5), "mine").getpixel((0, 0))
    (128, 128, 128)
    """
    if values.ndim == 3 and values.shape[-1] in (1, 4):
        values = values[..., 0] if values.shape[-1] == 1 else values[..., :3]
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[-1] == 3)) or 0 in values.shape:
        raise UserError(f"{name}: expected the shape (H, W) or (H, W, 3), but got {values.shape}")
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # nor NaN
            raise UserError(f"{name}: expected floating-point values from 0 to 1, but got {low:g} to {high:g}")
        return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))
    if values.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(values))
    if values.dtype != np.uint16:
        raise UserError(f"{name}: expected uint8, uint16 or floating-point values, but got {values.dtype}")
    return Image.fromarray(_to_8_bits(values, name, bits, warn))


def from_picture(
    picture: Image.Image, name: str, bits: int | None = None, warn: Callable[[str], None] = warnings.warn
) -> Image.Image:
    """Make an image of 8 bits, mode ``L`` or ``RGB``, of a Pillow image of any mode; see `from_array`.

    Raises:
        UserError: it holds values beyond 16 bits.

    >>> from_picture(Image.new("RGBA", (4, 6)), "mine").mode
    'RGB'
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(picture), name, bits, warn))
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def load_image(path: Path, bits: int | None = None, warn: Callable[[str], None] = warnings.warn) -> UInt8Array:
    """Read an image as (H, W, 3) uint8 RGB; arguments and errors are those of :func:`open_image`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (30, 20), "red").save(Path(folder, "red.png"))
    ...     pixels = load_image(Path(folder, "red.png"))
    >>> pixels.shape, pixels[0, 0].tolist()
    ((20, 30, 3), [255, 0, 0])
    """
    return np.asarray(open_image(path, bits, warn).convert("RGB"))


def load_mask(path: Path) -> UInt8Array:
    """Read a ground truth of any mode as (H, W) uint8: 1 where any colour is above 0, else 0. Alpha is ignored.

    Any value above 0 is anomalous: VisA's masks hold class indices 1-6, others 1 or 255, or have grey edges. A palette
    mask counts by its colours, because index 0 need not be black.

    Raises:
        UserError: the file can't be read.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Image.fromarray(np.array([[0, 1, 6, 255]], dtype=np.uint8)).save(Path(folder, "mask.png"))
    ...     print(load_mask(Path(folder, "mask.png")))
    [[0 1 1 1]]
    """
    values = np.asarray(_decode(path))  # (H, W) or (H, W, 3)
    if values.ndim == 3:
        # By channel and not as luminance, which rounds the darkest blue to 0.
        values = values[..., 0] | values[..., 1] | values[..., 2]  # (H, W)
    return (values > 0).astype(np.uint8)  # (H, W)


def _to_8_bits(values: npt.NDArray[Any], path: Path | str, bits: int | None, warn: Callable[[str], None]) -> UInt8Array:
    """Scale values of at most 16 bits to 0-255. Pillow's own conversion clips everything above 255 to white."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" or low < 0 or high > 65535:
        raise UserError(
            f"Expected an image of 8 or 16 bits, but {path} holds {values.dtype} values from {low:g} to {high:g}; "
            "convert it"
        )
    largest = 2 ** (bits or 16) - 1
    if high > largest:
        raise UserError(
            f"Expected an image of bits={bits}, so values of at most {largest}, but {path} holds {high}; correct bits"
        )
    if bits is None and high < 4096:
        warn(
            f"{path} has 16 bits, but its largest value is {high}, so it becomes nearly black: if the camera gives 12 "
            "bits, set bits=12 of the data set; bits=16 says that all is well"
        )
    scaled: UInt8Array = np.rint(values * (255 / largest)).astype(np.uint8)
    return scaled


def _decode(path: Path) -> Image.Image | npt.NDArray[Any]:
    """Read all of a file: ``L`` of a greyscale one, ``RGB`` of others; an array, as stored, of more than 8 bits.

    Nothing is converted that need not be. OpenCV decodes faster, and loses it again on the way into a Pillow image.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # Pillow advises RGBA for a palette with transparency; alpha is dropped here anyway.
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            image = Image.open(file)
            has_deep_colours = any(";16" in str(tile[3]) for tile in image.tile)
            image.load()  # here it shows whether the file is whole
            if image.mode.startswith("I") or image.mode == "F":
                return np.asarray(image)  # (H, W)
            colours: Image.Image = image if image.mode in ("L", "RGB") else image.convert("RGB")
            if has_deep_colours and image.mode in ("RGB", "RGBA", "LA"):
                return _deep_colours(path, colours)
            return colours
    except UNREADABLE as error:
        raise UserError(
            f"Expected a readable image, but could not decode {path} ({error}); fetch the file again or remove it"
        ) from error


def _deep_colours(path: Path, colours: Image.Image) -> Image.Image | npt.NDArray[Any]:
    """(H, W, 3) uint16 RGB of colours of 16 bits, of which Pillow gives the upper 8; these, if OpenCV can't read it."""
    values: Any = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)  # BGR, and alpha
    if values is None or values.ndim != 3 or not np.array_equal(values[..., 2::-1] >> 8, np.asarray(colours)):
        return colours
    deep: npt.NDArray[Any] = values[..., 2::-1]
    return deep
