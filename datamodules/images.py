"""Files -> arrays: images as 8-bit RGB, masks as {0, 1}.

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

# Of CLIP's training images, per channel, of values in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

UInt8Array = npt.NDArray[np.uint8]

# What Pillow raises, depending on the format, for a file that is cut off, empty or no image at all.
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)


def load_image(path: Path, bits: int | None = None, warn: Callable[[str], None] = warnings.warn) -> UInt8Array:
    """Read an image of any mode as (H, W, 3) uint8 RGB. An alpha channel is dropped, not blended.

    Args:
        path: the file.
        bits: how many of a 16-bit file's bits are used: 12 has 4095 become 255. None for 16. A file of 8 bits is taken
            as it is.
        warn: is told when a file looks as if it used fewer bits, and ``bits`` does not say so.

    Raises:
        UserError: the file can't be read, holds floats or integers of more than 16 bits, or values beyond ``bits``.
    """
    values = _read(path)
    if values.dtype == np.uint8:
        return values  # (H, W, 3)
    # Pillow's own conversion clips everything above 255 to white.
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
    scaled = np.rint(values * (255 / largest)).astype(np.uint8)
    return scaled if scaled.ndim == 3 else np.repeat(scaled[..., None], 3, axis=2)  # (H, W, 3)


def load_mask(path: Path) -> UInt8Array:
    """Read a ground truth of any mode as (H, W) uint8: 1 where any colour is above 0, else 0. Alpha is ignored.

    Any value above 0 is anomalous: VisA's masks hold class indices 1-6, others 1 or 255, or have grey edges. A palette
    mask counts by its colours, because index 0 need not be black.

    Raises:
        UserError: the file can't be read.
    """
    values = _read(path)  # (H, W) or (H, W, 3)
    if values.ndim == 3:
        # By channel and not as luminance, which rounds the darkest blue to 0.
        values = values[..., 0] | values[..., 1] | values[..., 2]  # (H, W)
    return (values > 0).astype(np.uint8)  # (H, W)


def _deep_colours(path: Path, colours: UInt8Array) -> npt.NDArray[Any]:
    """(H, W, 3) uint16 RGB of colours of 16 bits, of which Pillow gives the upper 8; these, if OpenCV can't read it."""
    values: Any = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)  # BGR, and alpha
    if values is None or values.ndim != 3 or not np.array_equal(values[..., 2::-1] >> 8, colours):
        return colours
    deep: npt.NDArray[Any] = values[..., 2::-1]
    return deep


def _read(path: Path) -> npt.NDArray[Any]:
    """(H, W, 3) uint8 RGB; of more than 8 bits, (H, W, 3) or, when a pixel is one number, (H, W) as stored."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # Pillow advises RGBA for a palette with transparency; alpha is dropped here anyway.
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            image = Image.open(file)
            if image.mode.startswith("I") or image.mode == "F":
                return np.asarray(image)
            has_deep_colours = any(";16" in str(tile[3]) for tile in image.tile)
            colours = np.asarray(image.convert("RGB"))  # here it shows whether the file is whole
            if has_deep_colours and image.mode in ("RGB", "RGBA", "LA"):
                return _deep_colours(path, colours)
            return colours
    except UNREADABLE as error:
        raise UserError(
            f"Expected a readable image, but could not decode {path} ({error}); fetch the file again or remove it"
        ) from error
