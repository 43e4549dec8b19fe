"""Codes of a few bits, packed into bytes from the lowest bits on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTE = 8


def unpacked_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Return the first ``count`` codes (..., count) of rows of bytes (..., B), a code of ``bits``.

    >>> unpacked_bits(np.array([0b11_101_010, 0b01], np.uint8), 3, 3)
    array([2, 5, 7], dtype=uint8)
    """
    if bits == BYTE:
        return packed[..., :count]
    if BYTE % bits == 0:
        codes = np.empty((*packed.shape, BYTE // bits), np.uint8)
        for place in range(BYTE // bits):
            np.right_shift(packed, place * bits, out=codes[..., place])
        codes &= np.uint8(2**bits - 1)
        return codes.reshape(*packed.shape[:-1], -1)[..., :count]
    starts = np.arange(count) * bits
    first, last = starts // BYTE, (starts + bits - 1) // BYTE
    pairs = packed[..., first] | packed[..., last].astype(np.uint16) << BYTE
    shifted = pairs >> (starts % BYTE).astype(np.uint16)
    found: NDArray[np.uint8] = (shifted & (2**bits - 1)).astype(np.uint8)
    return found


def bytes_of_rows(words: NDArray[Any]) -> NDArray[np.uint8]:
    """Return rows of little-endian words (..., W) as rows of bytes."""
    return np.ascontiguousarray(words).view(np.uint8)
