"""Integers in the order of float32 scores: their bit patterns, with those of the negative ones turned round."""

import numpy as np
from numpy.typing import NDArray

_SIGN = np.uint32(1 << 31)


def to_ordered_bits(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Map finite float32 to uint32 of the same order and with the same ties, in any shape."""
    bits: NDArray[np.uint32] = (scores + np.float32(0)).view(np.uint32)  # adding 0 makes -0.0 tie with 0.0
    bits ^= (bits.view(np.int32) >> 31).view(np.uint32) | _SIGN  # all bits of a negative one, else the sign alone
    return bits


def from_ordered_bits(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Undo `to_ordered_bits`."""
    scores: NDArray[np.float32] = (bits ^ (~(bits.view(np.int32) >> 31).view(np.uint32) | _SIGN)).view(np.float32)
    return scores
