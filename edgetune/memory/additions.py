"""Bytes of what methods add to a block besides low-rank updates, as the torch engine does it.

T tokens, D hidden size, W width of a bottleneck, H heads, P tokens of a prompt.
"""

from __future__ import annotations

from dataclasses import replace

from edgetune.memory.ledger import Ledger
from edgetune.memory.rows import Rows
from edgetune.storage import WIDE

INNER = 512
"""Columns of the network that a prefix is computed by."""


def bottleneck_forward(ledger: Ledger, rows: Rows, hidden: int, width: int) -> int:
    """Add a bottleneck's output to a half's; the sum stays.

    Returns the bytes that stay besides for the backward pass: both sides of the activation, and
    copies of the weights where they are not multiplied in float32.
    """
    out, inner = rows.numbers(hidden), rows.numbers(width)
    kept = ledger.take(_copies(rows, hidden, width) + inner)
    ledger.passing(inner)
    kept += ledger.take(inner)
    ledger.passing(2 * out)
    ledger.passing(2 * out)
    ledger.take(out)
    return kept


def bottleneck_backward(ledger: Ledger, rows: Rows, hidden: int, width: int) -> int:
    """Go back; return the bytes of the gradient of what the bottleneck reads, which stay."""
    out, inner = rows.numbers(hidden), rows.numbers(width)
    weights = hidden * width * (WIDE + (0 if rows.width == WIDE else rows.width))
    scaled = ledger.take(out)
    ledger.passing(weights)
    ledger.take(inner)
    ledger.drop(scaled)
    ledger.passing(2 * inner)
    own = ledger.take(out)
    ledger.passing(weights)
    ledger.drop(inner)
    entry = ledger.take(out)
    ledger.drop(own)
    return entry


def prompt_forward(
    ledger: Ledger, rows: Rows, columns: int, heads: int, length: int, *, grad: bool
) -> int:
    """Attend to a prompt through a gate; the sum of the outputs stays.

    Returns the bytes that stay besides: queries, and keys and values for every row, laid out for
    the products, the softmax, and what the gate multiplies. Nothing without ``grad``.
    """
    queries, scores = rows.numbers(columns), rows.tokens * heads * length
    if not grad:
        ledger.passing(queries, 2 * scores * WIDE)
        ledger.passing(2 * queries)
        return ledger.take(queries) - queries
    spread = rows.batch * length * columns * rows.width
    kept = ledger.take(2 * spread + queries)
    scaled = ledger.take(scores * rows.width)
    ledger.passing(scaled)
    narrow = 0 if rows.width == WIDE else scores * rows.width
    kept += ledger.take(scores * WIDE + narrow)
    ledger.passing(scores * WIDE)
    ledger.drop(scaled)
    kept += ledger.take(queries)
    ledger.passing(queries, queries)
    ledger.take(queries)
    return kept


def prompt_backward(ledger: Ledger, rows: Rows, columns: int, heads: int, length: int) -> int:
    """Go back; return the bytes of the queries' gradient, which stay."""
    queries, scores = rows.numbers(columns), rows.tokens * heads * length
    gated = ledger.take(queries)
    ledger.passing(queries)
    ledger.passing(queries, scores * rows.width)
    ledger.drop(gated)
    ledger.passing(3 * scores * WIDE)
    return ledger.take(queries)


def scale_backward(ledger: Ledger, rows: Rows, columns: int, *, needed: bool = True) -> int:
    """Go back through a product with a trained scale; return the gradient's bytes, which stay."""
    one = rows.numbers(columns)
    made = ledger.take(one) if needed else 0
    ledger.passing(one)
    return made


def prefix_bytes(keys: int, length: int) -> int:
    """Return the bytes of a layer's prefix twice, and of what its numbers are computed from."""
    return WIDE * length * (4 * keys + 2 * INNER)


def preceded(rows: Rows, length: int) -> Rows:
    """Return rows with so many positions before every document."""
    return replace(rows, context=rows.context + rows.documents * length)


def _copies(rows: Rows, hidden: int, width: int) -> int:
    return 0 if rows.width == WIDE else 2 * hidden * width * rows.width
