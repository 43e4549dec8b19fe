"""Bytes of the norm before the head: what it holds for a moment, and what it leaves."""

from __future__ import annotations

from math import prod

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.pieces import largest
from edgetune.shape import NormKind
from edgetune.storage import FLOAT32_BYTES


def norm_forward(ledger: Ledger, kind: NormKind, size: int, rows: BatchShape, columns: int) -> int:
    """Normalise ``columns`` numbers a token in groups of ``size``; the output stays.

    Returns the bytes that stay besides for the backward pass: the widened gain, of a layer norm
    also the statistics and a widened input.
    """
    if rows.kernels and kind.kind == "rms":
        ledger.alloc(rows.activation_bytes(columns))
        return 0
    weight_bytes = 0 if rows.stored == FLOAT32_BYTES and not kind.offset else FLOAT32_BYTES * size
    ledger.alloc(weight_bytes)
    if kind.offset and rows.stored != FLOAT32_BYTES:
        ledger.transient(weight_bytes)
    wide, out = FLOAT32_BYTES * rows.tokens * columns, rows.activation_bytes(columns)
    statistic = wide // size
    if kind.kind == "layer":
        return weight_bytes + _layer_norm(ledger, rows, weight_bytes, wide, statistic)
    ledger.alloc(out)
    piece = FLOAT32_BYTES * _at_once(rows, columns)
    ledger.transient(piece if rows.width == FLOAT32_BYTES else 2 * piece, piece // size)
    return weight_bytes


def _at_once(rows: BatchShape, columns: int) -> int:
    """Return how many numbers are normalised at once: a processor goes on by pieces."""
    shape = (rows.tokens, columns)
    return largest(shape) if rows.keeps_scratch else prod(shape)


def _layer_norm(
    ledger: Ledger, rows: BatchShape, weight_bytes: int, wide: int, statistic: int
) -> int:
    bias = ledger.alloc(weight_bytes)
    copy = 0 if rows.width == FLOAT32_BYTES else ledger.alloc(wide)
    ledger.alloc(2 * statistic)
    if copy:
        ledger.transient(wide, wide // FLOAT32_BYTES * rows.width)
    ledger.alloc(wide // FLOAT32_BYTES * rows.width)
    return bias + copy + 2 * statistic


def norm_backward(ledger: Ledger, kind: NormKind, size: int, rows: BatchShape, columns: int) -> int:
    """Go back through a norm; return the bytes of the input's gradient, which stay."""
    wide, out = FLOAT32_BYTES * rows.tokens * columns, rows.activation_bytes(columns)
    if rows.kernels and kind.kind == "rms":
        return ledger.alloc(out)
    if kind.kind == "rms":
        ledger.alloc(out)
        piece = FLOAT32_BYTES * _at_once(rows, columns)
        ledger.transient(3 * piece, 2 * piece // size)
        return out
    ledger.transient(0 if rows.width == FLOAT32_BYTES else 2 * wide)
    return ledger.alloc(out)
