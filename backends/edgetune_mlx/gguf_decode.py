"""Blocks of each type as float32; what the bits mean is in :mod:`edgetune.tensors.gguf.dequantize`.

A decoder takes N blocks (N, bytes) and returns their numbers (N, block), by the same operations in
the same order, and so the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import mlx.core as mx

from edgetune.tensors.gguf.dequantize import FP4_HALVES

Decoder = Callable[[mx.array], mx.array]

_TOP: Final = 0x00200000
"""Bits of the float32 that half of MXFP4's exponent 0 stands for."""


def decoded(name: str, blocks: mx.array) -> mx.array:
    """Return the numbers of blocks of the type called ``name``."""
    return _DECODERS[name](blocks)


def _half(blocks: mx.array, start: int) -> mx.array:
    """Return the float16 at a place of every block as float32 (N, 1)."""
    found: mx.array = mx.contiguous(blocks[:, start : start + 2]).view(mx.float16)
    return found.astype(mx.float32)


def _floats(codes: mx.array) -> mx.array:
    return codes.astype(mx.float32)


def _nibbles(packed: mx.array) -> mx.array:
    """Return the low and then the high halves of groups of bytes, (..., G) to (..., 2 G)."""
    return mx.concatenate([packed & 15, packed >> 4], axis=-1)


def _fields(packed: mx.array, count: int, width: int) -> mx.array:
    """Return ``count`` fields of ``width`` bits, lowest first: (..., G) to (..., count, G)."""
    shifts = (mx.arange(count) * width).astype(mx.uint8)
    return (packed[..., None, :] >> shifts[:, None]) & ((1 << width) - 1)


def _q4_0(blocks: mx.array) -> mx.array:
    return (_floats(_nibbles(blocks[:, 2:18])) - 8) * _half(blocks, 0)


def _q4_1(blocks: mx.array) -> mx.array:
    return _floats(_nibbles(blocks[:, 4:20])) * _half(blocks, 0) + _half(blocks, 2)


def _fifth(blocks: mx.array, bits: int, codes: int) -> mx.array:
    """Return codes of five bits (N, 32): the highest ones lie apart, in order."""
    high = blocks[:, bits : bits + 4, None] >> mx.arange(8).astype(mx.uint8)
    upper = ((high & 1) << 4).reshape(-1, 32)
    return _floats(_nibbles(blocks[:, codes : codes + 16]) | upper)


def _q5_0(blocks: mx.array) -> mx.array:
    return (_fifth(blocks, 2, 6) - 16) * _half(blocks, 0)


def _q5_1(blocks: mx.array) -> mx.array:
    return _fifth(blocks, 4, 8) * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: mx.array) -> mx.array:
    return _floats(mx.contiguous(blocks[:, 2:34]).view(mx.int8)) * _half(blocks, 0)


def _mxfp4(blocks: mx.array) -> mx.array:
    exponent = blocks[:, :1].astype(mx.uint32)
    normal = mx.maximum(exponent, 1) - 1
    bits = mx.where(exponent < 2, mx.array(_TOP, mx.uint32) << exponent, normal << 23)
    table = mx.array(FP4_HALVES, mx.float32)
    return mx.take(table, _nibbles(blocks[:, 1:17]), axis=0) * bits.view(mx.float32)


def _scaled(codes: mx.array, scales: mx.array, minima: mx.array | None = None) -> mx.array:
    """Return codes times the scales (N, groups) of their groups, less their minima."""
    values = codes.reshape(*scales.shape, -1) * scales[:, :, None]
    if minima is not None:
        values = values - minima[:, :, None]
    return values.reshape(len(values), -1)


def _two_bits(packed: mx.array) -> mx.array:
    """Return the codes of 64 bytes: 128 weights share 32 bytes."""
    return _fields(packed.reshape(-1, 2, 32), 4, 2)


def _q2_k(blocks: mx.array) -> mx.array:
    packed = blocks[:, :16]
    scales = _floats(packed & 15) * _half(blocks, 80)
    minima = _floats(packed >> 4) * _half(blocks, 82)
    return _scaled(_floats(_two_bits(blocks[:, 16:80])), scales, minima)


def _q3_k(blocks: mx.array) -> mx.array:
    high = _fields(blocks[:, :32], 8, 1).reshape(-1, 2, 4, 32) << 2
    codes = _floats(_two_bits(blocks[:, 32:96]) | high) - 4
    upper = _fields(blocks[:, 104:108], 4, 2).reshape(-1, 16) << 4
    scales = _floats(_nibbles(blocks[:, 96:104]) | upper) - 32
    return _scaled(codes, scales * _half(blocks, 108))


def _with_minima(blocks: mx.array, codes: mx.array) -> mx.array:
    """Return the numbers of Q4_K and Q5_K: scales and minima of 6 bits are in 12 bytes from 4 on."""
    first, second, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = mx.concatenate([first & 63, (last & 15) | (first >> 6 << 4)], axis=1)
    minima = mx.concatenate([second & 63, (last >> 4) | (second >> 6 << 4)], axis=1)
    return _scaled(
        _floats(codes), _floats(scales) * _half(blocks, 0), _floats(minima) * _half(blocks, 2)
    )


def _q4_k(blocks: mx.array) -> mx.array:
    return _with_minima(blocks, _fields(blocks[:, 16:144].reshape(-1, 4, 32), 2, 4))


def _q5_k(blocks: mx.array) -> mx.array:
    low = _fields(blocks[:, 48:176].reshape(-1, 4, 32), 2, 4).reshape(-1, 8, 32)
    return _with_minima(blocks, low | (_fields(blocks[:, 16:48], 8, 1) << 4))


def _q6_k(blocks: mx.array) -> mx.array:
    low = _fields(blocks[:, :128].reshape(-1, 2, 64), 2, 4).reshape(-1, 2, 4, 32)
    high = _fields(blocks[:, 128:192].reshape(-1, 2, 32), 4, 2) << 4
    scales = _floats(mx.contiguous(blocks[:, 192:208]).view(mx.int8))
    return _scaled(_floats(low | high) - 32, scales * _half(blocks, 208))


_DECODERS: Final[Mapping[str, Decoder]] = {
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
