"""Bytes of norms, rotations and activations: what they hold for a moment, and what they leave."""

from __future__ import annotations

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.shape import NormKind
from edgetune.storage import FLOAT32_BYTES


def norm_forward(ledger: Ledger, kind: NormKind, size: int, rows: BatchShape, columns: int) -> int:
    """Normalise ``columns`` numbers a token in groups of ``size``; the output stays.

    Returns the bytes that stay besides for the backward pass: the widened gain, of a layer norm
    also the statistics and a widened input.
    """
    weight_bytes = 0 if rows.stored == FLOAT32_BYTES and not kind.offset else FLOAT32_BYTES * size
    ledger.alloc(weight_bytes)
    if kind.offset and rows.stored != FLOAT32_BYTES:
        ledger.transient(weight_bytes)
    wide, out = FLOAT32_BYTES * rows.tokens * columns, rows.activation_bytes(columns)
    statistic = wide // size
    if kind.kind == "layer":
        return weight_bytes + _layer_norm(ledger, rows, weight_bytes, wide, statistic)
    copy = 0 if rows.width == FLOAT32_BYTES else ledger.alloc(wide)
    ledger.transient(wide, statistic)
    ledger.alloc(statistic)
    if copy:
        ledger.transient(wide, out)
    ledger.alloc(out)
    ledger.free(copy + statistic)
    return weight_bytes


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
    statistic = wide // size
    if kind.kind == "layer":
        ledger.transient(0 if rows.width == FLOAT32_BYTES else 2 * wide)
    elif rows.width == FLOAT32_BYTES:
        ledger.transient(3 * wide, 2 * statistic)
    else:
        ledger.transient(4 * wide, 2 * statistic)
    return ledger.alloc(out)


def rotate_forward(ledger: Ledger, rows: BatchShape, rotated: int, columns: int) -> None:
    """Rotate ``turned`` of ``columns`` numbers a token; the output stays."""
    part = rows.activation_bytes(rotated)
    ledger.transient(3 * part)
    if rotated < columns:
        ledger.transient(part, rows.activation_bytes(columns))
    ledger.alloc(rows.activation_bytes(columns))


def rotate_backward(ledger: Ledger, rows: BatchShape, rotated: int, columns: int) -> int:
    """Go back through a rotation; return the bytes of the input's gradient, which stay."""
    part = rows.activation_bytes(rotated)
    ledger.transient(
        3 * part + part // 2 + (2 * rows.activation_bytes(columns) if rotated < columns else 0)
    )
    return ledger.alloc(rows.activation_bytes(columns))


def gated_backward(ledger: Ledger, rows: BatchShape, columns: int) -> int:
    """Go back through ``activation(gate) * up``; return the bytes of both gradients, which stay.

    The activation is made again, and the gradient of each is a product with the other.
    """
    one = rows.activation_bytes(columns)
    ledger.transient(3 * one)
    return ledger.alloc(2 * one)


ARRAYS = {"silu": 2, "gelu": 2, "gelu_tanh": 3, "relu": 1, "relu2": 1}
"""Arrays that MLX holds of an activation's derivative, the gradient among them."""


def activation_backward(
    name: str, rows: BatchShape, columns: int, *, gated: bool, fused: bool
) -> int:
    """Return the bytes that MLX holds on the way back through an activation, its inputs apart.

    A gate has a gradient of its own; ``fused``: both become one array, which is as large as both.
    """
    return (ARRAYS[name] + gated + 2 * fused) * rows.activation_bytes(columns)
