"""What attention takes: by a kernel where there is one, by scores that are made elsewhere.

B rows, H heads, G key/value heads, S positions, K keys, h channels of a head, P keys in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from edgetune.shape import Attention
from edgetune.speed.counted import Counted
from edgetune.speed.functions import Functions
from edgetune.speed.tally import Tally
from edgetune.storage import FLOAT32_BYTES

QUERY_CHUNK = 256
"""Queries whose scores are made at once."""

KEY_PIECE = 512
"""Keys of a piece where a tile's scores are made."""

KERNEL_PIECE = 2048
"""Keys of a piece where a tile attends by a kernel."""

ATTENTION_PASSES = 3.5
"""Products of attention by a kernel in both passes against those of the forward pass."""


class Attending(Functions):
    """Attention of queries to their own keys, and to keys that all of them see."""

    def attention(self, q: Counted, k: Counted, v: Counted, rule: Attention) -> Counted:
        """Return the output (B, H, S, h) of causal attention within documents."""
        plain = rule.softcap is None and not rule.slopes and rule.sinks is None
        seen = self.batch.seen + k.shape[2] - q.shape[2]
        if plain and (rule.window is None or rule.window >= seen):
            return self._kernel(q, k, v)
        return self._scored(q, k, v, rule)

    @property
    def _tiled(self) -> bool:
        return self.batch.seen != self.batch.context

    def _kernel(self, q: Counted, k: Counted, v: Counted) -> Counted:
        """Attend by a kernel: a row, or a document where rows hold several, at a time."""
        batch, out = self.batch, self.made(q.shape, q.width, (q, k, v))
        wider = int(batch.attended != q.width)
        pieces: float = batch.batch if wider or self._tiled else 1
        if batch.documents > 1:
            pieces = batch.batch * batch.documents
        tokens, size = q.shape[0] * q.shape[2], q.shape[1] * q.shape[3]
        length = max(k.shape[2], batch.seen) / batch.documents
        flops = 2 * tokens * length * size
        ways = 1.0
        if self._tiled:
            ways = 1 + ceil(batch.seen / 2 / KERNEL_PIECE)
        copies = wider * (batch.attended + q.width)
        both = q.numbers + k.numbers + v.numbers
        self.ahead.attention += flops
        self.ahead.count(
            3 + pieces * ways * (6 + 3 * wider), copies * both + 3 * q.nbytes + copies * q.numbers
        )
        if out.needs:
            self.back.attention += (ATTENTION_PASSES - 1) * flops
            moved = copies * (both + 2 * q.numbers) + (2 * q.width + 4) * both
            self.back.count(7 + pieces * ways * (12 + 5 * wider), moved)
        return out

    def _scored(self, q: Counted, k: Counted, v: Counted, rule: Attention) -> Counted:
        """Attend by making the scores of some queries at a time, on the way back once more."""
        out = self.made(q.shape, q.width, (q, k, v))
        chunks, pairs = self._pairs(q.shape[2], rule.window)
        scores = q.shape[0] * q.shape[1] * pairs
        flops, capped = 2 * scores * q.shape[3], rule.softcap is not None
        self._weighed(self.ahead, scores, chunks, rule)
        self.multiply(self.ahead, 2 * flops, self.batch.attended)
        self.ahead.count(1, 2 * q.nbytes)
        if out.needs:  # scores once more, and each product twice
            self._weighed(self.back, scores, chunks, rule)
            self.multiply(self.back, 5 * flops, self.batch.attended)
            self.back.count(
                chunks * (30 + 7 * capped),
                FLOAT32_BYTES * scores * (9 + 8 * capped) + chunks * (2 * k.nbytes + q.nbytes),
            )
        return out

    def _weighed(self, tally: Tally, scores: float, chunks: float, rule: Attention) -> None:
        """Count what makes weights of so many scores, in float32."""
        batch, capped, inclined = self.batch, rule.softcap is not None, bool(rule.slopes)
        extended, narrow = rule.sinks is not None, batch.attended != FLOAT32_BYTES
        other = 3 * capped + 5 * inclined + 5 * extended + 3 * (rule.window is not None)
        casts = 4 * (batch.attended != batch.width) + 2 * narrow
        passes = 6 + 6 * capped + 3 * inclined + 2 * extended + 3 * narrow
        tally.count(chunks * (32 + other + casts), FLOAT32_BYTES * scores * passes)

    def _pairs(self, positions: int, window: int | None) -> tuple[float, float]:
        """Return chunks of queries, and pairs of query and key that are computed, in one row."""
        batch = self.batch
        if self._tiled:
            mean = batch.seen / 2 / batch.documents + positions / 2
            keys = mean if window is None else min(mean, window + QUERY_CHUNK)
            pieces = ceil(keys / KEY_PIECE)
            return batch.batch * ceil(positions / QUERY_CHUNK) * pieces, positions * keys
        length = ceil(positions / batch.documents)
        each = list(_chunks(length, window))
        rows = 1 if batch.documents == 1 else batch.batch
        pairs = batch.documents * sum(queries * keys for queries, keys in each)
        return rows * batch.documents * len(each), pairs

    def behind(self, x: Counted, before: Counted) -> Counted:
        """Return x (B, heads, S, h) with ``before`` (1, heads, P, h) in front of each document."""
        rows, heads, positions, size = x.shape
        documents = self.batch.documents
        length = positions + ceil(documents) * before.shape[2]
        out = self.made((rows, heads, length, size), x.width, (x, before))
        parts = 1 if documents == 1 else rows * documents
        self.ahead.count(1 + parts, 2 * out.nbytes)
        self.back.count(parts * (x.needs + 2 * before.needs), before.nbytes * rows * before.needs)
        return out

    def attention_to_all(self, q: Counted, k: Counted, v: Counted) -> Counted:
        """Return the output (B, H, S, h) of attention to keys (1, G, P, h) that all queries see."""
        length, scores = k.shape[2], q.numbers // q.shape[-1] * k.shape[2]
        spread = (q.shape[0], q.shape[1], length, q.shape[3])
        grouped, k, v = self.view(q, *q.shape), self.spread(k, spread), self.spread(v, spread)
        weights = self.matmul(grouped, k, length, views=3)
        narrow = self.batch.narrow
        self.ahead.count(5 + 2 * narrow, scores * (16 + 12 * narrow))
        if weights.needs:
            self.back.count(2 + 2 * narrow, scores * (24 + 12 * narrow))
        return self.view(self.matmul(weights, v, q.shape[3], views=3), *q.shape)


def _chunks(positions: int, window: int | None) -> Iterator[tuple[int, int]]:
    """Yield the queries of each chunk and the keys that it can see."""
    for start in range(0, positions, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, positions)
        yield stop - start, stop - (0 if window is None else max(0, start - window + 1))
