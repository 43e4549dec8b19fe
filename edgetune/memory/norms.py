"""Bytes of the norm before the head: what it holds for a moment, and what it leaves."""

from __future__ import annotations

from math import prod

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.pieces import largest
from edgetune.shape import NormKind
from edgetune.storage import FLOAT32_BYTES


def norm_forward(
    ledger: Ledger, kind: NormKind, size: int, rows: BatchShape, columns: int, *, graded: bool
) -> int:
    """Normalise ``columns`` numbers a token in groups of ``size``; the output stays.

    Returns the bytes that stay besides for the backward pass: the widened gain, of a layer norm
    also the statistics and, where its gradient is wanted, a widened input.
    """
    if rows.kernels and kind.kind == "rms":
        ledger.alloc(rows.activation_bytes(columns))
        return 0
    weight_bytes = 0 if rows.stored == FLOAT32_BYTES and not kind.offset else FLOAT32_BYTES * size
    ledger.alloc(weight_bytes)
    if kind.offset and rows.stored != FLOAT32_BYTES:
        ledger.transient(weight_bytes)
    wide, out = FLOAT32_BYTES * rows.tokens * columns, rows.activation_bytes(columns)
    if kind.kind == "layer":
        return weight_bytes + _layer_norm(ledger, rows, weight_bytes, wide, graded=graded)
    ledger.alloc(out)
    piece = FLOAT32_BYTES * _at_once(rows, columns)
    ledger.transient(piece if rows.width == FLOAT32_BYTES else 2 * piece, piece // size)
    return weight_bytes


def _at_once(rows: BatchShape, columns: int) -> int:
    """Return how many numbers are normalised at once: a processor goes on by pieces."""
    shape = (rows.tokens, columns)
    return largest(shape) if rows.keeps_scratch else prod(shape)


def _layer_norm(
    ledger: Ledger, rows: BatchShape, weight_bytes: int, wide: int, *, graded: bool
) -> int:
    bias, narrow = ledger.alloc(weight_bytes), wide // FLOAT32_BYTES * rows.width
    copy = 0 if narrow == wide else ledger.alloc(wide)
    statistics = ledger.alloc(2 * FLOAT32_BYTES * rows.tokens)
    if copy:
        ledger.transient(wide)
        if not graded:  # what is widened ends with the product of it
            ledger.free(copy)
            copy = 0
        ledger.transient(wide, narrow)
    ledger.alloc(narrow)
    return bias + copy + statistics


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
