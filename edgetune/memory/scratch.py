"""Bytes of the buffers that products keep from one to the next (on processors)."""

from __future__ import annotations

from edgetune.memory.batch_shape import PIECE, BatchShape
from edgetune.shape import ModelShape
from edgetune.storage import FLOAT32_BYTES

HEAD_SLICE = 2048
"""Rows of the head that are multiplied at a time on a processor."""

UNPACKED = 1 << 20
"""Packed bytes that are unpacked at a time."""


def scratch_bytes(
    shape: ModelShape, rows: BatchShape, quantization: str, head: str, *, frozen: bool = True
) -> int:
    """Return the bytes of all buffers once every product has been done.

    ``frozen``: whether there are products with frozen projections.
    """
    if not rows.keeps_scratch:
        return 0
    blocks = _dense(_largest(shape) if frozen else 0, rows, stored=quantization)
    heads = _dense(
        min(HEAD_SLICE, shape.vocabulary) * shape.hidden_size,
        rows,
        stored="int8" if head == "int8" else "none",
    )
    shared = sum(map(max, zip(blocks, heads, strict=True)))
    unpacking = _unpacking(shape, rows, quantization) if frozen else 0
    return shared + unpacking + (_widened(shape, rows) if frozen else 0)


def _largest(shape: ModelShape) -> int:
    return max(linear.inputs * linear.outputs for linear in shape.linears)


def _dense(size: int, rows: BatchShape, stored: str) -> tuple[int, int]:
    """Return the bytes of the float32 and of the 16-bit form of a matrix of ``size`` weights."""
    if stored == "none" and not rows.recast:
        return 0, 0
    narrow = 0 if rows.product == FLOAT32_BYTES else size * rows.product
    wide = FLOAT32_BYTES * size if stored == "int8" or not narrow else 0
    return wide, narrow


def _unpacking(shape: ModelShape, rows: BatchShape, quantization: str) -> int:
    """Return the bytes of indices, and of float32 values on their way to 16 bits."""
    if quantization != "nf4":
        return 0
    packed = min(UNPACKED, _largest(shape) // 2)
    return FLOAT32_BYTES * packed + (
        0 if rows.product == FLOAT32_BYTES else 2 * FLOAT32_BYTES * packed
    )


def _widened(shape: ModelShape, rows: BatchShape) -> int:
    """Return the bytes of a piece of inputs and of outputs in the type of the product."""
    if not rows.upcast:
        return 0
    widest_in = max(linear.inputs for linear in shape.linears)
    widest_out = max(linear.outputs for linear in shape.linears)
    return min(PIECE, rows.tokens) * (widest_in + widest_out) * rows.product
