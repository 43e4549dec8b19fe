"""Quantized matrices as plain numbers, on a processor, for which MLX has no kernel.

There ``mx.dequantize`` holds codes as 32-bit integers, shifted and put together, and takes twice
to five times what it makes. Here bytes are converted or looked up: the same values, bit for bit,
and nothing beside them but scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import mlx.core as mx

INTEGERS: Final = range(16)
MAGNITUDES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FLOATS: Final = (*MAGNITUDES, *(-x for x in MAGNITUDES))
"""The numbers of four bits: one for the sign, two for the exponent, one for the mantissa."""
BIAS: Final = 127
"""Of the exponents that are scales."""


def unpack_affine(
    codes: mx.array, scales: mx.array, biases: mx.array, *, group: int, bits: int
) -> mx.array:
    """Return the values (..., K) of 8- or 4-bit integers, in the type of the scales.

    ``codes`` are (..., K * bits / 32), ``scales`` and ``biases`` (..., K / group).
    """
    kind = scales.dtype
    values = codes.view(mx.uint8).astype(kind) if bits == 8 else _looked_up(codes, INTEGERS, kind)
    grouped = values.reshape(*scales.shape, group)
    return _flat(grouped * scales[..., None] + biases[..., None])


def unpack_float(codes: mx.array, scales: mx.array, *, group: int, dtype: mx.Dtype) -> mx.array:
    """Return the values (..., K) of 4-bit floats (OCP Microscaling Formats 1.0, table 5).

    Groups of 16 have 8-bit floats as scales (nvfp4), groups of 32 exponents (mxfp4).
    """
    if group == 16:
        factors = mx.from_fp8(scales, dtype=dtype)
    else:
        factors = mx.power(mx.array(2.0, dtype), scales.astype(dtype) - BIAS)
    grouped = _looked_up(codes, FLOATS, dtype).reshape(*scales.shape, group)
    return _flat(grouped * factors[..., None])


def _looked_up(codes: mx.array, numbers: Sequence[float], dtype: mx.Dtype) -> mx.array:
    """Return the numbers that bytes stand for, two each (..., 2)."""
    return mx.take(_pairs(tuple(numbers), dtype), codes.view(mx.uint8), axis=0)


@cache
def _pairs(numbers: tuple[float, ...], dtype: mx.Dtype) -> mx.array:
    """Return two numbers for each byte, that of the lower half first.

    Made once: a graph would hold one for every product to come.
    """
    return mx.array([[numbers[byte % 16], numbers[byte // 16]] for byte in range(256)], dtype)


def _flat(grouped: mx.array) -> mx.array:
    return grouped.reshape(*grouped.shape[:-2], -1)
