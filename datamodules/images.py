"""Files -> arrays: images as 8-bit RGB, masks as {0, 1}.

The orientation tag of EXIF is deliberately not applied: the reference implementation doesn't, and masks are drawn on
the pixels as they are stored.
"""

import struct
import warnings
from pathlib import Path
from typing import Any

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


def load_image(path: Path) -> UInt8Array:
    """Read an image of any mode as (H, W, 3) uint8 RGB. An alpha channel is dropped, not blended.

    Raises:
        UserError: the file can't be read, or holds floats or integers of more than 16 bits.
    """
    values = _read(path)
    if values.ndim == 3:
        return values.astype(np.uint8, copy=False)  # (H, W, 3)
    # Pillow's own conversion clips everything above 255 to white. 65535 / 257 = 255.
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise UserError(
            f"Expected an image of 8 or 16 bits, but {path} holds {values.dtype} values from {values.min():g} to "
            f"{values.max():g}; convert it"
        )
    grey = np.rint(values / 257).astype(np.uint8)  # (H, W)
    return np.repeat(grey[..., None], 3, axis=2)  # (H, W, 3)


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


def _read(path: Path) -> npt.NDArray[Any]:
    """(H, W, 3) uint8 RGB, or (H, W) as stored when a pixel is one number of more than 8 bits."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # Pillow advises RGBA for a palette with transparency; alpha is dropped here anyway.
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            image = Image.open(file)
            deep = image.mode.startswith("I") or image.mode == "F"
            return np.asarray(image if deep else image.convert("RGB"))
    except UNREADABLE as error:
        raise UserError(
            f"Expected a readable image, but could not decode {path} ({error}); fetch the file again or remove it"
        ) from error
