"""Files -> pixels: images as 8-bit RGB or grey, masks as {0, 1}.

The orientation tag of EXIF is deliberately not applied: the reference implementation doesn't, and masks are drawn on
the pixels as they are stored.
"""

import io
import re
import struct
import warnings
import zlib
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
    values = _read(path)
    if values.dtype != np.uint8:
        values = _to_8_bits(values, path, bits, warn)
    return Image.fromarray(values)


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
    values = _read(path)  # (H, W) or (H, W, 3)
    if values.ndim == 3:
        # By channel and not as luminance, which rounds the darkest blue to 0.
        values = values[..., 0] | values[..., 1] | values[..., 2]  # (H, W)
    return (values > 0).astype(np.uint8)  # (H, W)


def _to_8_bits(values: npt.NDArray[Any], path: Path, bits: int | None, warn: Callable[[str], None]) -> UInt8Array:
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


def _read(path: Path) -> npt.NDArray[Any]:
    """Pixels as stored: (H, W) of a greyscale file, else (H, W, 3) RGB; uint8 if they have at most 8 bits."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image, warnings.catch_warnings():
            # Pillow advises RGBA for a palette with transparency; alpha is dropped here anyway.
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            values = _decode_fast(image, data)
            if values is not None:
                return values
            if image.mode in ("L", "F") or image.mode.startswith("I"):
                return np.asarray(image)
            has_deep_colours = ";16" in _stored_as(image)
            colours = np.asarray(image.convert("RGB"))  # here it shows whether the file is whole
            if has_deep_colours and image.mode in ("RGB", "RGBA", "LA"):
                return _deep_colours(data, colours)
            return colours
    except UNREADABLE as error:
        raise UserError(
            f"Expected a readable image, but could not decode {path} ({error}); fetch the file again or remove it"
        ) from error


def _decode_fast(image: Image.Image, data: bytes) -> UInt8Array | None:
    """Decode by OpenCV, which takes two thirds of Pillow's time, where both give the same bits; else None.

    That is so for JPEG, and for PNG of 8 bits, of one or three channels. OpenCV says nothing of a damaged file, so
    those are left to Pillow, too.

    Args:
        image: the file as Pillow has opened it; nothing but its header has been read.
        data: all of the file.
    """
    if image.mode not in ("L", "RGB"):
        return None
    if image.format == "PNG":
        is_plain = _stored_as(image) == image.mode and not image.info.keys() & {"interlace", "transparency"}
        if not is_plain or getattr(image, "is_animated", False) or not _is_whole_png(data):
            return None
    elif image.format != "JPEG" or not _is_whole_jpeg(data):
        return None
    flags = cv2.IMREAD_GRAYSCALE if image.mode == "L" else cv2.IMREAD_COLOR
    try:
        values: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # such as more pixels than it takes
        return None
    if values is not None and values.ndim == 3:
        cv2.cvtColor(values, cv2.COLOR_BGR2RGB, dst=values)
    return values  # type: ignore[no-any-return]


def _stored_as(image: Image.Image) -> str:
    """Pillow's name for how a file stores its pixels, such as ``RGB;16B`` where the mode is ``RGB``."""
    return " ".join(str(tile[3]) for tile in image.tile)  # type: ignore[attr-defined]


def _is_whole_png(data: bytes) -> bool:
    """Whether all chunks are there and have the check sums that they name."""
    content, start = memoryview(data), 8  # behind the signature
    while start + 12 <= len(data):  # length, kind, content, check sum
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if zlib.crc32(content[start + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            return False
        if kind == b"IEND":
            return True
        start = end
    return False


def _is_whole_jpeg(data: bytes) -> bool:
    """Whether nothing but pixels is between the last scan's start and the end marker, which the file ends with."""
    marker = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]").search(data, data.rfind(b"\xff\xda") + 2)
    return marker is not None and marker[0] == b"\xff\xd9" and marker.end() == len(data)


def _deep_colours(data: bytes, colours: UInt8Array) -> npt.NDArray[Any]:
    """(H, W, 3) uint16 RGB of colours of 16 bits, of which Pillow gives the upper 8; these, if OpenCV can't read it."""
    values: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # BGR, and alpha
    if values is None or values.ndim != 3 or not np.array_equal(values[..., 2::-1] >> 8, colours):
        return colours
    deep: npt.NDArray[Any] = values[..., 2::-1]
    return deep
