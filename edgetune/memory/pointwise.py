"""Bytes of norms, rotations and activations: what they hold for a moment, and what they leave."""

from __future__ import annotations

from edgetune.memory.ledger import Ledger
from edgetune.memory.rows import Rows
from edgetune.shape import NormKind
from edgetune.storage import WIDE


def norm_forward(ledger: Ledger, kind: NormKind, size: int, rows: Rows, columns: int) -> int:
    """Normalise ``columns`` numbers a token in groups of ``size``; the output stays.

    Returns the bytes that stay besides for the backward pass: the widened gain, of a layer norm
    also the statistics and a widened input.
    """
    gain = 0 if rows.stored == WIDE and not kind.offset else WIDE * size
    ledger.take(gain)
    if kind.offset and rows.stored != WIDE:
        ledger.passing(gain)
    wide, out = WIDE * rows.tokens * columns, rows.numbers(columns)
    statistic = wide // size
    if kind.kind == "layer":
        return gain + _layer_norm(ledger, rows, gain, wide, statistic)
    copy = 0 if rows.width == WIDE else ledger.take(wide)
    ledger.passing(wide, statistic)
    ledger.take(statistic)
    if copy:
        ledger.passing(wide, out)
    ledger.take(out)
    ledger.drop(copy + statistic)
    return gain


def _layer_norm(ledger: Ledger, rows: Rows, gain: int, wide: int, statistic: int) -> int:
    bias = ledger.take(gain)
    copy = 0 if rows.width == WIDE else ledger.take(wide)
    ledger.take(2 * statistic)
    if copy:
        ledger.passing(wide, wide // WIDE * rows.width)
    ledger.take(wide // WIDE * rows.width)
    return bias + copy + 2 * statistic


def norm_backward(ledger: Ledger, kind: NormKind, size: int, rows: Rows, columns: int) -> int:
    """Go back through a norm; return the bytes of the input's gradient, which stay."""
    wide, out = WIDE * rows.tokens * columns, rows.numbers(columns)
    statistic = wide // size
    if kind.kind == "layer":
        ledger.passing(0 if rows.width == WIDE else 2 * wide)
    elif rows.width == WIDE:
        ledger.passing(3 * wide, 2 * statistic)
    else:
        ledger.passing(4 * wide, 2 * statistic)
    return ledger.take(out)


def rotate_forward(ledger: Ledger, rows: Rows, turned: int, columns: int) -> None:
    """Rotate ``turned`` of ``columns`` numbers a token; the output stays."""
    part = rows.numbers(turned)
    ledger.passing(3 * part)
    if turned < columns:
        ledger.passing(part, rows.numbers(columns))
    ledger.take(rows.numbers(columns))


def rotate_backward(ledger: Ledger, rows: Rows, turned: int, columns: int) -> int:
    """Go back through a rotation; return the bytes of the input's gradient, which stay."""
    part = rows.numbers(turned)
    ledger.passing(3 * part + part // 2 + (2 * rows.numbers(columns) if turned < columns else 0))
    return ledger.take(rows.numbers(columns))


def gated_backward(ledger: Ledger, rows: Rows, columns: int) -> int:
    """Go back through ``activation(gate) * up``; return the bytes of both gradients, which stay.

    The activation is made again, and the gradient of each is a product with the other.
    """
    one = rows.numbers(columns)
    ledger.passing(3 * one)
    return ledger.take(2 * one)


ARRAYS = {"silu": 2, "gelu": 2, "gelu_tanh": 3, "relu": 1}
"""Arrays that MLX holds of an activation's derivative, the gradient among them."""


def activation_backward(name: str, rows: Rows, columns: int, *, gated: bool, fused: bool) -> int:
    """Return the bytes that MLX holds on the way back through an activation, its inputs apart.

    A gate has a gradient of its own; ``fused``: both become one array, which is as large as both.
    """
    return (ARRAYS[name] + gated + 2 * fused) * rows.numbers(columns)
