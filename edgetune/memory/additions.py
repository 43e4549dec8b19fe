"""Bytes of what methods add to a block besides low-rank updates, as the torch engine does it.

T tokens, D hidden size, W width of a bottleneck, H heads, P tokens of a prompt.
"""

from __future__ import annotations

from dataclasses import replace

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.storage import FLOAT32_BYTES

NORM_ROWS = 128
"""Rows of a matrix that are in float32 at a time for their norms."""

INNER = 512
"""Columns of the network that a prefix is computed by."""


def bottleneck_forward(ledger: Ledger, rows: BatchShape, hidden: int, width: int) -> int:
    """Add a bottleneck's output to a half's; the sum stays.

    Returns the bytes that stay besides for the backward pass: both sides of the activation, and
    copies of the weights where they are not multiplied in float32.
    """
    out, inner = rows.activation_bytes(hidden), rows.activation_bytes(width)
    kept = ledger.alloc(_copies(rows, hidden, width) + inner)
    ledger.transient(inner)
    kept += ledger.alloc(inner)
    ledger.transient(2 * out)
    ledger.transient(2 * out)
    ledger.alloc(out)
    return kept


def bottleneck_backward(ledger: Ledger, rows: BatchShape, hidden: int, width: int) -> int:
    """Go back; return the bytes of the gradient of what the bottleneck reads, which stay."""
    out, inner = rows.activation_bytes(hidden), rows.activation_bytes(width)
    weights = hidden * width * (FLOAT32_BYTES + (0 if rows.width == FLOAT32_BYTES else rows.width))
    scaled = ledger.alloc(out)
    ledger.transient(weights)
    ledger.alloc(inner)
    ledger.free(scaled)
    ledger.transient(2 * inner)
    own = ledger.alloc(out)
    ledger.transient(weights)
    ledger.free(inner)
    entry = ledger.alloc(out)
    ledger.free(own)
    return entry


def row_norms(rows: BatchShape, inputs: int, outputs: int, rank: int) -> int:
    """Return the bytes that the norms of a matrix with its low-rank update take for a moment."""
    if rows.lazy:
        return 0
    piece = min(NORM_ROWS, outputs)
    wide = 0 if rows.product == FLOAT32_BYTES else piece * inputs
    return FLOAT32_BYTES * (wide + piece * rank + rank**2 + 3 * outputs)


def prompt_forward(
    ledger: Ledger, rows: BatchShape, columns: int, heads: int, length: int, *, grad: bool
) -> int:
    """Attend to a prompt through a gate; the sum of the outputs stays.

    Returns the bytes that stay besides: queries, and keys and values for every row, laid out for
    the products, the softmax, and what the gate multiplies. Nothing without ``grad``.
    """
    queries, scores = rows.activation_bytes(columns), rows.tokens * heads * length
    if not grad:
        ledger.transient(queries, 2 * scores * FLOAT32_BYTES)
        ledger.transient(2 * queries)
        return ledger.alloc(queries) - queries
    spread = rows.batch * length * columns * rows.width
    kept = ledger.alloc(2 * spread + queries)
    scaled = ledger.alloc(scores * rows.width)
    ledger.transient(scaled)
    narrow = 0 if rows.width == FLOAT32_BYTES else scores * rows.width
    kept += ledger.alloc(scores * FLOAT32_BYTES + narrow)
    ledger.transient(scores * FLOAT32_BYTES)
    ledger.free(scaled)
    kept += ledger.alloc(queries)
    ledger.transient(queries, queries)
    ledger.alloc(queries)
    return kept


def prompt_backward(ledger: Ledger, rows: BatchShape, columns: int, heads: int, length: int) -> int:
    """Go back; return the bytes of the queries' gradient, which stay."""
    queries, scores = rows.activation_bytes(columns), rows.tokens * heads * length
    gated = ledger.alloc(queries)
    ledger.transient(queries)
    ledger.transient(queries, scores * rows.width)
    ledger.free(gated)
    ledger.transient(3 * scores * FLOAT32_BYTES)
    return ledger.alloc(queries)


def scale_backward(ledger: Ledger, rows: BatchShape, columns: int, *, needed: bool = True) -> int:
    """Go back through a product with a trained scale; return the gradient's bytes, which stay."""
    one = rows.activation_bytes(columns)
    made = ledger.alloc(one) if needed else 0
    ledger.transient(one)
    return made


def prefix_bytes(keys: int, length: int) -> int:
    """Return the bytes of a layer's prefix twice, and of what its numbers are computed from."""
    return FLOAT32_BYTES * length * (4 * keys + 2 * INNER)


def preceded(rows: BatchShape, length: int) -> BatchShape:
    """Return rows with so many positions before every document."""
    return replace(rows, context=rows.context + rows.documents * length)


def _copies(rows: BatchShape, hidden: int, width: int) -> int:
    return 0 if rows.width == FLOAT32_BYTES else 2 * hidden * width * rows.width
