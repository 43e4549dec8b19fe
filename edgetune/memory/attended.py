"""Attention as the torch engine does it: one kernel where there is one, chunks of queries elsewhere.

B rows, H heads, G key/value heads, S positions, K keys, h channels of a head, P tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgetune.memory.fused import Fused
from edgetune.memory.sized import Gradient, Order, Sized, Strewn, outside
from edgetune.shape import Attention
from edgetune.storage import FLOAT32_BYTES

QUERY_CHUNK = 256
"""Queries whose scores are held at once where attention is not fused."""


INDEX = 8
"""Bytes of a position."""


class Attending(Fused):
    """Attention of queries to their own keys, and to keys that all of them see."""

    def attention(self, q: Sized, k: Sized, v: Sized, rule: Attention) -> Sized:
        """Return the output (B, H, S, h) of causal attention."""
        window = rule.window
        short = window is None or window >= q.shape[2]
        if self.batch.fuses and short and _plain(rule):
            return self._kernel(q, k, v)
        return self._chunks(q, k, v, rule)

    def _kernel(self, q: Sized, k: Sized, v: Sized) -> Sized:
        """Save the output and a float32 a query; what is narrower is widened a row at a time."""
        ledger, wider = self.ledger, self.batch.attended != q.width
        pieces = q.shape[0] if wider else 1
        ratio = self.batch.attended / q.width
        queries, keys = (int(x.nbytes * ratio) // pieces for x in (q, k))
        wide = queries + 2 * keys if wider else 0
        padded = self._padded(q, k)
        storage, sizes = self.new(q.nbytes), (q.nbytes, k.nbytes, v.nbytes)
        sums = self.new(FLOAT32_BYTES * q.numbers // q.shape[-1])
        parts = 2 if self.batch.forked else 1  # of a document that goes on from another one
        ledger.transient(parts * queries, wide + padded)

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            made = [self.new(size) for size in sizes]
            again = (wide + 2 * queries if wider else 0) + 2 * padded
            ledger.transient(queries + 2 * keys, again)
            return made

        return self.tape.made(
            q.shape, q.width, (q, k, v), back, storage=storage, saved=(q, k, v, storage, sums)
        )

    def _padded(self, q: Sized, k: Sized) -> int:
        """Return the bytes of a document with what it goes on from, where a card's kernel wants it.

        It is given as many queries as keys, and computed again on the way back.
        """
        if not self.batch.forked or self.batch.keeps_scratch:
            return 0
        return 2 * (q.nbytes + k.nbytes) // q.shape[0]

    def _chunks(self, q: Sized, k: Sized, v: Sized, rule: Attention) -> Sized:
        """Attend a chunk of queries at a time to the keys that it can see.

        Each is computed again on the way back: its scores are never kept.
        """
        window, positions = rule.window, q.shape[2]
        last = (positions - 1) // QUERY_CHUNK * QUERY_CHUNK
        sees_all = window is None or last < window
        keys_first: Order = "channels" if sees_all and k.shape[0] > 1 else "heads"
        if self.batch.forked:
            k, v = self._behind_others(k, keys_first), self._behind_others(v, "heads")
        outputs = []
        for start in range(0, positions, QUERY_CHUNK):
            stop = min(start + QUERY_CHUNK, positions)
            first = 0 if window is None else max(0, start - window + 1)
            seen = (self._positions(x, stop - first) for x in (k, v))
            queries = self._positions(q, stop - start)
            outputs.append(self._chunk(queries, *seen, rule=rule, keys_first=keys_first))
        return self.joined(outputs, q.shape, heads_apart=True)

    def _positions(self, x: Sized, count: int) -> Sized:
        rows, heads, positions, size = x.shape
        if count == positions:
            return x
        part = x.part((rows, heads, count, size), heads_apart=x.heads_apart)
        likeness = replace(x, storage=None)
        if x.needs:
            self.tape.record(
                (x,), (part,), (), lambda _: (strewn(likeness, self.new(likeness.nbytes)),)
            )
        return part

    def _behind_others(self, x: Sized, first: Order) -> Sized:
        """Return keys or values as documents see them that go on from others: copies beside x."""
        likeness, size = replace(x, storage=None), x.nbytes
        return self.tape.made(
            x.shape, x.width, (x,), lambda _: (strewn(likeness, self.new(size), first),),
            saved=(x,), heads_apart=x.heads_apart,
        )  # fmt: skip

    def _chunk(self, q: Sized, k: Sized, v: Sized, *, rule: Attention, keys_first: Order) -> Sized:
        """Attend some queries; saves its inputs alone."""
        ledger, batch, inputs = self.ledger, self.batch, (q, k, v)
        likenesses = tuple(replace(x, storage=None) for x in inputs)
        wide, narrow = q.numbers * batch.attended, q.width != batch.attended
        apart = q.shape[0] > 1 and not q.heads_apart
        orders: tuple[Order, ...] = ("heads", keys_first, "heads")

        def back(grads: list[Gradient]) -> Sequence[Gradient]:
            grad = self.new(wide) if narrow else grads[0]
            grads.clear()
            grad = self.new(wide) if apart else grad
            again = Attending(ledger, batch)
            last = again.explicit(*likenesses, rule=rule, ends=False).key
            given = {last: grad}
            del grad
            found = again.tape.backward(given)
            each = zip(likenesses, orders, strict=True)
            return [strewn(x, found.get(x.key), first) for x, first in each]

        q, k, v = (replace(x, needs=False) for x in inputs)
        storage = Attending(ledger, batch).explicit(q, k, v, rule=rule, ends=True).storage
        return self.tape.made(q.shape, q.width, inputs, back, storage=storage, saved=inputs)

    def explicit(self, q: Sized, k: Sized, v: Sized, *, rule: Attention, ends: bool) -> Sized:
        """Return softmax(q k^T) v; without ``ends`` the last product is on the tape alone."""
        wide, size = self.batch.attended, q.shape[-1]
        queries, keys = q.shape[2], k.shape[2]
        grouped, keys_t = self.as_width(q, wide), self.as_width(k, wide)
        scores = self.scaled(
            self.as_width(
                self.matmul(self._matrices(grouped), self._spread(keys_t, q), keys), FLOAT32_BYTES
            ),
            rule.scale,
        )
        if rule.softcap is not None:
            capped = self.pointwise(self.scaled(scores, 1.0), saves_output=True)
            scores = self.scaled(capped, 1.0)
            del capped
        places = self.new(INDEX * (queries + keys))
        if rule.slopes:
            scores = self._inclined(scores, queries * keys)
        hidden = self.new(queries * keys)
        if rule.window is not None:
            self.ledger.transient(queries * keys + INDEX * queries)
        scores, values = self.masked(scores, hidden), self.as_width(v, wide)
        if rule.sinks is not None:
            column = outside((*q.shape[:3], 1), FLOAT32_BYTES)
            scores = self.joined([scores, column], (*q.shape[:3], keys + 1))
            values = self.joined([values], (*v.shape[:2], keys + 1, size), heads_apart=True)
        weights = self.as_width(self.pointwise(scores, saves_output=True), wide)
        del scores
        if ends:
            out = self.matmul(weights, self._spread(values, q), size)
            del hidden, places
            return self.as_width(out, q.width)
        return self.unmade_matmul(weights, self._spread(values, q), size)

    def _inclined(self, scores: Sized, distances: int) -> Sized:
        """Return scores with what distance takes from them, each head at its own rate."""
        apart = self.new(INDEX * distances)
        taken = self.tape.made((scores.shape[1], distances), FLOAT32_BYTES, (), lambda _: ())
        del apart
        out = self.tape.made(scores.shape, scores.width, (scores,), lambda grads: (grads[0],))
        del taken
        return out

    def _matrices(self, x: Sized) -> Sized:
        """Return x (B, heads, S, h) as one matrix a head of a row."""
        return x if x.heads_apart or x.shape[0] == 1 else self.copied(x)

    def _spread(self, x: Sized, q: Sized) -> Sized:
        """Return keys or values as one matrix for each head of q."""
        heads = q.shape[1]
        if heads == x.shape[1]:
            return self._matrices(x)
        seen = x.shape[0] == x.shape[1] == 1  # the same matrix for all heads
        return self.spread(x, (x.shape[0], heads, *x.shape[2:]), copied=not seen)

    def behind(self, x: Sized, before: Sized, documents: int) -> Sized:
        """Return x (B, heads, S, h) with ``before`` (1, heads, P, h) in front of each document."""
        rows, heads, positions, size = x.shape
        length = positions + documents * before.shape[2]
        many, one = rows * before.nbytes, before.nbytes
        wanted, likeness = (x.needs, before.needs), replace(x, storage=None)

        def back(grads: list[Gradient]) -> Sequence[Gradient]:
            grad = strewn(likeness, grads[0], "rows") if rows > 1 else grads[0]
            if not wanted[1]:
                return grad, None
            self.ledger.transient(many if documents > 1 else 0, one)
            return grad, self.new(one)

        shape = (rows, heads, length, size)
        return self.tape.made(shape, x.width, (x, before), back, heads_apart=True)

    def attention_to_all(self, q: Sized, k: Sized, v: Sized, scale: float) -> Sized:
        """Return the output (B, H, S, h) of attention to keys (1, G, P, h) that all queries see."""
        rows, heads, _, size = q.shape
        length, groups = k.shape[2], k.shape[1]
        spread = groups > 1 and (rows > 1 or heads > groups)
        grouped = q if q.heads_apart or rows == 1 else self.copied(q)
        keys = self.spread(k, (rows, heads, length, size), copied=spread)
        scores = self.matmul(grouped, keys, length)
        del keys
        scores = self.scaled(scores, scale)
        wide = self.as_width(scores, FLOAT32_BYTES)
        weights = self.pointwise(wide, saves_output=True)
        del wide
        weights = self.as_width(weights, q.width)
        values = self.spread(v, (rows, heads, length, size), copied=spread)
        out = self.matmul(weights, values, size)
        del values
        return self._copied_on_the_way_back(out) if rows > 1 else out

    def _copied_on_the_way_back(self, x: Sized) -> Sized:
        out, nbytes = x.part(x.shape, heads_apart=True), x.nbytes
        if x.needs:
            self.tape.record((x,), (out,), (), lambda _: (self.new(nbytes),))
        return out


def _plain(rule: Attention) -> bool:
    """Tell whether scores are what queries and keys make, and no more."""
    return rule.softcap is None and not rule.slopes and rule.sinks is None


def strewn(x: Sized, grad: Gradient, first: Order = "heads") -> Gradient:
    """Return a gradient of x (B, heads, S, h), which is in another order unless it has one head."""
    if isinstance(grad, Strewn) or (first == "heads" and x.shape[1] == 1):
        return grad
    return Strewn(grad, first)
