"""Bytes of attention: fused where the kernel can, in chunks of queries elsewhere.

B rows, H heads, S positions, h channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.shape import Attention, BlockShape
from edgetune.storage import FLOAT32_BYTES

QUERY_CHUNK = 256
"""Queries whose scores are held at once where attention is not fused."""


SEEN, DISTANCE = 1, 4
"""Bytes of an element of MLX's mask, and of what it is made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Columns of queries and of keys (or values), and the rule of a layer."""

    queries: int
    keys: int
    count: int
    rule: Attention

    @classmethod
    def of(cls, block: BlockShape) -> Heads:
        """Return the heads of one layer."""
        if block.attention is None:
            raise TypeError(f"a {type(block.mixer).__name__} has no heads")
        return cls(queries=block.queries, keys=block.keys, count=block.heads, rule=block.attention)

    def fused(self, rows: BatchShape) -> bool:
        """Tell whether one kernel does it."""
        window = self.rule.window
        return (
            rows.fuses
            and not rows.lazy
            and self.rule.softcap is None
            and not self.rule.slopes
            and self.rule.sinks is None
            and (window is None or window >= rows.context)
        )

    @property
    def all(self) -> int:
        """Columns of queries, keys and values."""
        return self.queries + 2 * self.keys


def attend_forward(ledger: Ledger, heads: Heads, rows: BatchShape) -> int:
    """Attend; return the bytes that stay beside the output: a float32 a query if fused."""
    out = ledger.alloc(rows.activation_bytes(heads.queries))
    if rows.lazy:
        ledger.transient(_piece(heads, rows, copies=1))
        ledger.transient(out)  # the pieces, and the whole that they become
        return 0
    if not heads.fused(rows):
        ledger.transient(_chunk(heads, rows, copies=3))
        ledger.transient(out)
        return 0
    sums = ledger.alloc(FLOAT32_BYTES * rows.tokens * heads.count)
    wide = heads.all * _widened(rows)
    ledger.transient(heads.queries * _attended(rows), wide)
    return sums


def attend_backward(ledger: Ledger, heads: Heads, rows: BatchShape) -> int:
    """Go back; return the bytes of the gradients of queries, keys and values, which stay."""
    if rows.lazy:
        grads = ledger.alloc(2 * rows.activation_bytes(heads.keys))
        ledger.transient(_piece(heads, rows, copies=3))
        grads += ledger.alloc(rows.activation_bytes(heads.queries))
        ledger.transient(rows.activation_bytes(heads.queries))
        return grads
    grads = ledger.alloc(rows.activation_bytes(heads.all))
    if not heads.fused(rows):
        ledger.transient(_chunk(heads, rows, copies=6), rows.activation_bytes(heads.all))
        return grads
    wide = (heads.all + 2 * heads.queries) * _widened(rows)
    ledger.transient(heads.all * _attended(rows), wide)
    return grads


def _attended(rows: BatchShape) -> int:
    """Return the bytes of a column of what is attended at one time: a row where it is widened."""
    return (rows.context if rows.attended != rows.width else rows.tokens) * rows.attended


def _widened(rows: BatchShape) -> int:
    """Return the bytes of a column that is widened."""
    return _attended(rows) if rows.attended != rows.width else 0


def _piece(heads: Heads, rows: BatchShape, copies: int) -> int:
    """Return the bytes of MLX's largest piece: copies of its scores, its mask, its queries.

    Scores that are capped are made by plain operations, in float32.
    """
    window = rows.context if heads.rule.window is None or rows.forked else heads.rule.window
    ends = [*range(QUERY_CHUNK, rows.context, QUERY_CHUNK), rows.context]
    held: list[int] = []
    for end in ends:
        queries = min(QUERY_CHUNK, end - (end - 1) // QUERY_CHUNK * QUERY_CHUNK)
        keys = min(end, window + queries)
        score = (copies + (heads.rule.sinks is not None)) * rows.width  # they join the scores
        if heads.rule.softcap is not None:
            score = 2 * copies * FLOAT32_BYTES
        elif heads.rule.slopes:
            score = (copies + 1) * FLOAT32_BYTES
        seen = rows.batch * queries * keys
        scores = seen * heads.count * score
        masked = seen if rows.documents > 1 else queries * keys
        mask = masked * (SEEN + (DISTANCE if len(ends) > 1 else 0))  # that of the next piece
        mask += (
            masked * (SEEN + DISTANCE) if rows.forked else 0
        )  # what goes on from other documents
        own = rows.batch * heads.queries * rows.width
        made = end - queries  # by the pieces before
        held.append(scores + mask + own * (max(1, copies - 1) * queries + made))
    return max(held)


def _chunk(heads: Heads, rows: BatchShape, copies: int) -> int:
    """Return the bytes of a chunk's scores, some copies of them, and of the keys it sees."""
    queries = min(QUERY_CHUNK, rows.context)
    window = rows.context if heads.rule.window is None else heads.rule.window + queries
    keys = min(window, rows.context)
    scores = rows.batch * heads.count * queries * keys * FLOAT32_BYTES
    spread = 2 * rows.batch * keys * heads.queries * rows.attended
    return copies * scores + spread
