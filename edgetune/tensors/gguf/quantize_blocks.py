"""Formats of 32 numbers with one scale (and, in some, one offset), rounded as ggml rounds them.

A block's bytes begin with its scale and offset in float16. Codes of four bits share bytes: the
first sixteen numbers have the low halves, the others the high ones; a fifth bit lies apart. Tested
bit for bit against the reference quantizers of ``gguf`` and ``libgguf``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def q8_0(blocks: Float32) -> Bytes:
    """Eight bits: the largest number becomes 127. Blocks (M, 32) to bytes (M, 34)."""
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    scaled = blocks * _reciprocal(scale)
    # halves go away from zero, where numpy would round them to even numbers
    whole = np.floor(np.abs(scaled) + np.float32(0.5))
    codes = np.copysign(whole, scaled).astype(np.int8)
    return np.concatenate([_half(scale), codes.view(np.uint8)], axis=-1)


def q4_0(blocks: Float32) -> Bytes:
    """Four bits, symmetric: what is farthest from 0 becomes -8. (M, 32) to (M, 18)."""
    scale, codes = _symmetric(blocks, 8)
    return np.concatenate([_half(scale), _nibbles(codes)], axis=-1)


def q5_0(blocks: Float32) -> Bytes:
    """Five bits, symmetric: what is farthest from 0 becomes -16. (M, 32) to (M, 22)."""
    scale, codes = _symmetric(blocks, 16)
    return np.concatenate(
        [_half(scale), _fifth_bits(codes), _nibbles(codes & np.uint8(15))], axis=-1
    )


def q4_1(blocks: Float32) -> Bytes:
    """Four bits between the least and the largest number. (M, 32) to (M, 20)."""
    scale, least, codes = _between(blocks, 15)
    codes = np.minimum(codes, 15)
    return np.concatenate([_half(scale), _half(least), _nibbles(codes)], axis=-1)


def q5_1(blocks: Float32) -> Bytes:
    """Five bits between the least and the largest number. (M, 32) to (M, 24)."""
    scale, least, codes = _between(blocks, 31)
    parts = [_half(scale), _half(least), _fifth_bits(codes), _nibbles(codes & np.uint8(15))]
    return np.concatenate(parts, axis=-1)


def _symmetric(blocks: Float32, steps: int) -> tuple[Float32, Bytes]:
    """Return scales (M, 1) and codes (M, 32) from 0 to ``2 * steps - 1``; ``steps`` stands for 0."""
    farthest = np.abs(blocks).argmax(-1)[:, None]
    scale = np.take_along_axis(blocks, farthest, -1) / np.float32(-steps)
    codes = blocks * _reciprocal(scale) + np.float32(steps + 0.5)
    return scale, np.clip(np.trunc(codes), 0, 2 * steps - 1).astype(np.uint8)


def _between(blocks: Float32, steps: int) -> tuple[Float32, Float32, Bytes]:
    """Return scales and least numbers (M, 1) and codes (M, 32) from 0 to ``steps``."""
    least, most = blocks.min(-1, keepdims=True), blocks.max(-1, keepdims=True)
    scale = (most - least) / np.float32(steps)
    codes = np.trunc((blocks - least) * _reciprocal(scale) + np.float32(0.5)).astype(np.uint8)
    return scale, least, codes


def _reciprocal(scale: Float32) -> Float32:
    with np.errstate(divide="ignore", over="ignore"):
        inverse: Float32 = np.where(scale == 0, scale, 1 / scale)
    return inverse


def _half(values: Float32) -> Bytes:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint8)


def _nibbles(codes: Bytes) -> Bytes:
    """Return codes (M, 32) of four bits as bytes (M, 16)."""
    packed: Bytes = codes[:, :16] | codes[:, 16:] << np.uint8(4)
    return packed


def _fifth_bits(codes: Bytes) -> Bytes:
    """Return the fifth bits of codes (M, 32) as bytes (M, 4), the first number's lowest."""
    return np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")
