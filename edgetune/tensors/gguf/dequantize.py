"""Blocks of a GGUF file as plain numbers, bit for bit what llama.cpp computes with.

N blocks are bytes (N, nbytes) and become float32 (N, block). ``d`` is a block's scale and ``m``
its minimum, float16 in the file; the blocks of 256 have smaller ones of a few bits within, which
these scale. Four-bit codes of one half lie in the low bits of bytes, those of the other in the high.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

FP4_HALVES: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""The sixteen values of E2M1, doubled (Open Compute Project, Microscaling Formats)."""


def dequantize(kind: str, blocks: Bytes) -> Floats:
    """Return the numbers of blocks of the type that is called ``kind``.

    Raises:
        KeyError: if there is no such type here.
    """
    return _DECODERS[kind](blocks)


def half(blocks: Bytes, start: int) -> Floats:
    """Return the float16 at a place of every block, (N, 1)."""
    raw = np.ascontiguousarray(blocks[:, start : start + 2])
    return raw.view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Return the low and then the high halves of groups of bytes, (..., G) to (..., 2 G)."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(blocks: Bytes, start: int) -> Bytes:
    """Return a bit of each of 32 weights from four bytes, moved to where a fifth bit stands."""
    bits = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    bits <<= 4
    return bits


def _signed(codes: NDArray[Any], zero: int) -> Floats:
    values: Floats = codes.astype(np.float32) - np.float32(zero)
    return values


def _q4_0(blocks: Bytes) -> Floats:
    return half(blocks, 0) * _signed(_nibbles(blocks[:, 2:18]), 8)


def _q4_1(blocks: Bytes) -> Floats:
    return half(blocks, 0) * _nibbles(blocks[:, 4:20]).astype(np.float32) + half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 6:22]) | _fifth_bits(blocks, 2)
    return half(blocks, 0) * _signed(codes, 16)


def _q5_1(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 8:24]) | _fifth_bits(blocks, 4)
    return half(blocks, 0) * codes.astype(np.float32) + half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return half(blocks, 0) * blocks[:, 2:34].view(np.int8).astype(np.float32)


def _mxfp4(blocks: Bytes) -> Floats:
    exponent = blocks[:, :1].astype(np.uint32)
    # half of 2 ** (exponent - 127), below the smallest normal number too
    bits = np.where(exponent < 2, np.uint32(0x00200000) << exponent, (exponent - 1) << 23)
    values = np.array(FP4_HALVES, np.float32)[_nibbles(blocks[:, 1:17])]
    return bits.view(np.float32) * values


def _scaled(codes: NDArray[Any], scale: Floats) -> Floats:
    """Return codes (N, groups, G) times a scale for each group (N, groups)."""
    return codes.astype(np.float32) * scale[:, :, None]


def _two_bits(packed: Bytes) -> Bytes:
    """Return the codes of 64 bytes in order: (N, 2, 4, 32), 128 weights share 32 bytes."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    codes: Bytes = packed.reshape(-1, 2, 1, 32) >> shifts
    codes &= 3
    return codes


def _q2_k(blocks: Bytes) -> Floats:
    scales = blocks[:, :16]
    codes = _two_bits(blocks[:, 16:80]).reshape(-1, 16, 16)
    scale = half(blocks, 80) * (scales & 15).astype(np.float32)
    least = half(blocks, 82) * (scales >> 4).astype(np.float32)
    return (_scaled(codes, scale) - least[:, :, None]).reshape(-1, 256)


def _q3_k(blocks: Bytes) -> Floats:
    high = np.unpackbits(blocks[:, :32, None], axis=2, bitorder="little")  # (N, 32, 8)
    high = high.transpose(0, 2, 1).reshape(-1, 2, 4, 32)
    codes = _two_bits(blocks[:, 32:96]).astype(np.int8) - ((1 - high.astype(np.int8)) << 2)
    low, rest = blocks[:, 96:104], blocks[:, 104:108]
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, :, None]
    upper = ((rest[:, None, :] >> shifts) & 3).reshape(-1, 16)
    scales = _signed(_nibbles(low) | upper << 4, 32)
    return _scaled(codes.reshape(-1, 16, 16), half(blocks, 108) * scales).reshape(-1, 256)


def _scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Return eight scales and eight minima of 6 bits from 12 bytes, (N, 8) each.

    The first four of each are the low bits of a byte; the others have their low four bits in the
    last four bytes and their upper two above the first ones.
    """
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (last & 15) | (first >> 6 << 4)), axis=1)
    minima = np.concatenate((second & 63, (last >> 4) | (second >> 6 << 4)), axis=1)
    return scales, minima


def _k_with_minima(blocks: Bytes, codes: NDArray[Any]) -> Floats:
    """Return the numbers of Q4_K and Q5_K: codes (N, 8, 32), scales and minima at byte 4."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    scale = half(blocks, 0) * scales.astype(np.float32)
    least = half(blocks, 2) * minima.astype(np.float32)
    return (_scaled(codes, scale) - least[:, :, None]).reshape(-1, 256)


def _q4_k(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 16:144].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _k_with_minima(blocks, codes)


def _q5_k(blocks: Bytes) -> Floats:
    high = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little").transpose(0, 2, 1)
    low = _nibbles(blocks[:, 48:176].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _k_with_minima(blocks, low | high << 4)


def _q6_k(blocks: Bytes) -> Floats:
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    codes = _signed(low.reshape(-1, 16, 16) | high.reshape(-1, 16, 16) << 4, 32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _scaled(codes, half(blocks, 208) * scales).reshape(-1, 256)


def _numbers(kind: np.dtype[Any]) -> Callable[[Bytes], Floats]:
    return lambda blocks: np.ascontiguousarray(blocks).view(kind).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


_DECODERS: Final[Mapping[str, Callable[[Bytes], Floats]]] = {
    "F32": _numbers(np.dtype(np.float32)),
    "F16": _numbers(np.dtype(np.float16)),
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "MXFP4": _mxfp4,
}
