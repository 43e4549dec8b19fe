"""Bytes of what brings several streams together before the head (AltUp); nothing where there is one."""

from __future__ import annotations

from edgetune.memory.batch_shape import PIECE, BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.shape import ModelShape
from edgetune.storage import FLOAT32_BYTES


def joined_forward(ledger: Ledger, shape: ModelShape, rows: BatchShape) -> int:
    """Average streams; return the bytes of what comes of it, which stay.

    On the way, of some tokens at a time, a sum, a projection widened and brought to size, and numbers
    a token.
    """
    if shape.altup is None:
        return 0
    mean = ledger.alloc(rows.activation_bytes(shape.hidden_size))
    wide, narrow, number = _piece(shape, rows)
    ledger.transient(3 * wide + narrow + 2 * number)
    return mean


def joined_backward(ledger: Ledger, shape: ModelShape, rows: BatchShape) -> None:
    """Go back to the streams, whose gradient stays.

    On the way, of some tokens at a time, the gradient and the first stream widened, a projection, a
    product of these, and numbers a token.
    """
    if shape.altup is None:
        return
    ledger.alloc(rows.activation_bytes(shape.stream_size))
    wide, narrow, number = _piece(shape, rows)
    ledger.transient((4 if narrow else 3) * wide + 7 * number)


def _piece(shape: ModelShape, rows: BatchShape) -> tuple[int, int, int]:
    """Return the bytes of some tokens of a stream widened, as they are if narrower, of one number each."""
    tokens = min(PIECE, rows.tokens)
    wide = FLOAT32_BYTES * tokens * shape.hidden_size
    narrow = 0 if rows.width == FLOAT32_BYTES else tokens * shape.hidden_size * rows.width
    return wide, narrow, FLOAT32_BYTES * tokens
