"""Bytes on MLX of what a block's own numbers of each token add to the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetune.memory import pointwise

if TYPE_CHECKING:
    from edgetune.memory.backward import Backward
    from edgetune.memory.forward import Forward


def forward(way: Forward) -> None:
    """Add to the stream, whose bytes become those of the sum."""
    ledger, saved, size = way.ledger, way.saved, way.rows.activation_bytes(way.shape.per_layer)
    gate = way._project("per_layer_gate")
    inner = ledger.alloc(size)
    out = way._project("per_layer_out")
    normed = way._norm("per_layer", "per_layer_norm")
    ledger.transient(way.hidden)  # the sum, before the stream is let go of
    ledger.free(normed)
    if way.grad:
        saved.per_layer = gate + out
        ledger.free(inner)
    else:
        ledger.free(gate + inner + out)


def backward(way: Backward) -> int:
    """Return the bytes of the gradient of the stream before it, which stay."""
    ledger, saved, size = way.ledger, way.saved, way.shape.per_layer
    grad = pointwise.norm_backward(
        ledger, way.block.norm, way.block.hidden_size, way.rows, way.block.hidden_size
    )
    ledger.free(saved.per_layer_norm)
    inner = way._project("per_layer_out")
    ledger.free(grad)
    both = pointwise.gated_backward(ledger, way.rows, size)
    ledger.free(inner + saved.per_layer)
    grad = way._project("per_layer_gate")
    ledger.free(both)
    ledger.transient(way.hidden)  # the sum with what came
    return grad
