"""Attention of a tile of a block, as the MLX engine writes it.

Of many queries, and of many keys before the tile, the last ones are followed: they stand for all.

B rows, H heads, G key/value heads, R = H/G, N positions of a tile, n queries and K keys of a piece,
h channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.lazy.arrays import counted, made_of, matmul, reduced
from edgetune.memory.lazy.attention import Keys, Piece, mask_of
from edgetune.memory.lazy.elementwise import (
    add,
    cast,
    converted,
    divide,
    exp,
    minus_from,
    multiply,
    square,
    subtract,
    tanh,
    times,
    where,
)
from edgetune.memory.lazy.gradients import custom_all
from edgetune.memory.lazy.graph import Array, Grads, Operation, Wanted, given
from edgetune.memory.lazy.views import (
    broadcast,
    concatenate,
    contiguous,
    cut,
    depends,
    expand,
    flatten,
    reshape,
    swapaxes,
    total,
    updated,
    zeros,
)
from edgetune.network.ops import Attended
from edgetune.network.tiles import spans
from edgetune.shape import Attention, ModelShape
from edgetune.storage import FLOAT32_BYTES

QUERIES = 256
"""Queries of a piece."""

KEYS = 1024
"""Keys of a piece."""

DESCRIBED = 64_000
"""Bytes of the process, not of MLX's allocator, that describe what is done with a piece of queries
and one of keys, both ways (55,000 measured without caps, slopes and documents)."""

FOLLOWED = 2
"""Pieces of queries, and of keys before the tile, that are followed one by one."""


def described(shape: ModelShape, rows: BatchShape) -> int:
    """Return the bytes of the process that the graph of a tile takes: it has all pieces."""
    most, queries = 0, ceil(rows.tile / QUERIES)
    for block in shape.kinds:
        if block.attention is not None and block.splits:
            window = block.attention.window
            seen = rows.context if window is None else min(rows.context, window + rows.tile)
            most = max(most, queries * ceil(seen / min(KEYS, rows.tile)))
    return DESCRIBED * most


@dataclass(slots=True)
class LazyTile:
    """The tile that is computed, ``start`` positions of a row before it, in tiles of ``size``.

    ``own`` are its keys and values, ``sums`` the gradients of those before it that were followed.
    The first ``before`` positions are none of its own; a mixer goes on from ``state``, and ``behind``
    is the one behind the tile.
    """

    start: int
    size: int
    own: tuple[Array, ...] = ()
    sums: list[Array] = field(default_factory=list)
    before: int = 0
    state: Array | None = None
    behind: Array | None = None

    @property
    def passed(self) -> list[Array]:
        """What later tiles read of it: keys and values, or the state behind it."""
        return [*self.own, *([] if self.behind is None else [self.behind])]

    def left(self) -> list[Array]:
        """Return the tile's keys and values as the tiles after it see them."""
        return [
            contiguous(cut(x, 2, span.start, span.stop))
            for x in self.own
            for span in spans(x.shape[2], KEYS)
        ]


@dataclass(slots=True)
class _KeyPiece:
    """Keys and values of positions from ``start`` on, and their gradients; ``past``: of another tile."""

    start: int
    k: Array
    v: Array
    past: bool = False
    grads: list[Array] = field(default_factory=list)

    def add(self, span: tuple[int, int] | None, parts: Sequence[Array]) -> None:
        """Add gradients of all positions, or of a span of them."""
        if self.past:
            there = self.grads or [given(x.shape, FLOAT32_BYTES) for x in parts]
            self.grads = [_in_place(a, b) for a, b in zip(there, parts, strict=True)]
        elif span is None:
            pairs = zip(self.grads, parts, strict=True) if self.grads else ()
            self.grads = [add(a, b) for a, b in pairs] or list(parts)
        else:
            whole = self.grads or [zeros(x.shape, FLOAT32_BYTES) for x in (self.k, self.v)]
            self.grads = [updated(a, b, adds=True) for a, b in zip(whole, parts, strict=True)]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Some keys that queries see: a span of a piece, None for all of it."""

    keys: _KeyPiece
    span: tuple[int, int] | None
    piece: Piece

    @property
    def both(self) -> list[Array]:
        """Keys and values."""
        each = [self.keys.k, self.keys.v]
        return each if self.span is None else [cut(x, 2, *self.span) for x in each]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The pieces that the attention of a tile is computed in."""

    tile: LazyTile
    rule: Attention
    keys: Keys
    sinks: Array | None

    def seen(
        self, some: slice, own: _KeyPiece, front: _KeyPiece | None, past: Sequence[_KeyPiece]
    ) -> Iterator[_Seen]:
        """Yield what some queries see."""
        start, before, near = self.tile.start, self.keys.before, self.rule.window
        queries = (start + some.start, start + some.stop)
        apart = self.keys.forked or (before > 0 and self.keys.documents)
        first = 0 if near is None or apart else before + queries[0] - near + 1
        if front is not None and first < before:
            yield _Seen(front, None, Piece(queries, (0, before)))
        for each in past:
            span = (before + each.start, before + each.start + each.k.shape[2])
            if first < span[1]:
                yield _Seen(each, None, Piece(queries, span))
        for keys in spans(some.stop, KEYS):
            span = (before + start + keys.start, before + start + keys.stop)
            if first < span[1]:
                yield _Seen(own, (keys.start, keys.stop), Piece(queries, span))

    def past(self, k: Array) -> list[_KeyPiece]:
        """Return the last pieces of keys before the tile."""
        size = min(KEYS, self.tile.size)
        starts = [span.start for span in spans(self.tile.start, size)] if self.tile.start else []
        shape = (k.shape[0], k.shape[1], size, k.shape[3])
        return [
            _KeyPiece(at, given(shape, k.width), given(shape, k.width), past=True)
            for at in starts[-FOLLOWED:]
        ]


def attend_in_tile(
    attended: Attended[Array], tile: LazyTile, front: tuple[Array, Array] | None
) -> Array:
    """Return the output (B, H, N, h) for the queries of a tile."""
    keys = replace(attended.keys, before=0 if front is None else front[0].shape[2])
    pieces = _Pieces(tile, attended.rule, keys, attended.sinks)
    inputs = [attended.q, attended.k, attended.v, *(front or ())]

    def back(primals: list[Array], grads: Grads, found: Sequence[Array], _: Wanted) -> list[Array]:
        grad = grads[0]
        assert grad is not None, "the output has a gradient"
        return _backward(primals, grad, found, pieces)

    return custom_all(lambda *inputs: _forward(inputs, pieces), back, *inputs)[0]


def _forward(inputs: Sequence[Array], pieces: _Pieces) -> list[Array]:
    """Return the output (B, H, N, h) and the log-sum-exp (B, G, R, N, 1)."""
    q, k, v, *others = inputs
    own, front = _KeyPiece(pieces.tile.start, k, v), _in_front(others)
    skipped, some_queries = _followed(q)
    outputs, sums, past = [], [], pieces.past(k)
    if skipped:
        outputs.append(made_of((q, k, v), (*q.shape[:2], skipped, q.shape[3]), q.width))
        sums.append(made_of((outputs[0],), _statistics(q, k, skipped), FLOAT32_BYTES))
    for some in some_queries:
        grouped = _grouped(cut(q, 2, some.start, some.stop), k.shape[1])
        part, *_ = depends([grouped], outputs[-1:] or [q])
        state = _nothing(part, pieces.sinks)
        for seen in pieces.seen(some, own, front, past):
            state = _with_piece(state, part, depends(seen.both, state), seen.piece, pieces)
        highest, summed, out = state
        outputs.append(_ungrouped(cast(divide(out, summed), q.width)))
        sums.append(add(highest, square(summed)))
    return [concatenate(outputs, 2), concatenate(sums, 3)]


def _backward(
    primals: Sequence[Array], grad: Array, found: Sequence[Array], pieces: _Pieces
) -> list[Array]:
    """Return the gradients of q, k, v and of what is in front, one piece after the other."""
    q, k, v, *others = primals
    own, front = _KeyPiece(pieces.tile.start, k, v), _in_front(others)
    skipped, some_queries = _followed(q)
    q_grads, past = [], pieces.past(k)
    if skipped:
        shape = (*q.shape[:2], skipped, q.shape[3])
        q_grads.append(made_of((*primals, grad, *found), shape, q.width))
    for some in some_queries:
        each = [_grouped(cut(x, 2, some.start, some.stop), k.shape[1]) for x in (q, grad, found[0])]
        part, by_query, out = depends(each, q_grads[-1:] or [grad])
        wide = multiply(cast(by_query, FLOAT32_BYTES), cast(out, FLOAT32_BYTES))
        fixed = total(wide, (-1,))
        summed, done = zeros(part.shape, FLOAT32_BYTES), [fixed]
        for seen in pieces.seen(some, own, front, past):
            inputs = depends(seen.both, done)
            sums = cut(found[1], 3, some.start, some.stop)
            parts = _piece_back((part, by_query), inputs, (fixed, sums), seen.piece, pieces)
            summed = add(summed, parts[0])
            seen.keys.add(seen.span, [_of_rows(x, seen.keys.k) for x in parts[1:]])
            done = [summed, *seen.keys.grads]
        q_grads.append(_ungrouped(cast(summed, q.width)))
    pieces.tile.sums += [x for each in past for x in each.grads]
    of_keys = [cast(x, q.width) for each in (own, front) if each for x in _grads_of(each)]
    return [concatenate(q_grads, 2), *of_keys]


def _with_piece(
    state: Sequence[Array], part: Array, keys: Sequence[Array], piece: Piece, pieces: _Pieces
) -> list[Array]:
    """Return the highest score (B, G, R, n, 1), the sum, and the output, with those of a piece."""
    (highest, summed, out), (k, v) = state, keys
    scores, _ = _scores(part, k, piece, pieces)
    raised = add(highest, reduced(scores))
    weights = exp(subtract(scores, raised))
    kept = exp(subtract(highest, raised))
    summed = add(multiply(summed, kept), total(weights, (-1,)))
    made = matmul(_flat(cast(weights, part.width)), v)
    wide = reshape(cast(made, FLOAT32_BYTES), out.shape)
    return [raised, summed, add(multiply(out, kept), wide)]


def _piece_back(
    by_query: tuple[Array, Array], keys: Sequence[Array], known: tuple[Array, Array],
    piece: Piece, pieces: _Pieces,
) -> list[Array]:  # fmt: skip
    """Return the float32 gradients of queries (B, G, R, n, h), keys and values (B, G, K, h)."""
    (part, grad), (k, v), (fixed, log_sum) = by_query, keys, known
    scores, slope = _scores(part, k, piece, pieces)
    weights = exp(subtract(scores, log_sum))
    v_grad = matmul(swapaxes(_flat(cast(weights, part.width)), -1, -2), _flat(grad))
    going = cast(matmul(_flat(grad), swapaxes(v, -1, -2)), FLOAT32_BYTES)
    going = multiply(subtract(reshape(going, weights.shape), fixed), weights)
    if slope is not None:
        going = multiply(going, slope)
    narrow = _flat(cast(times(going), part.width))
    k_grad = matmul(swapaxes(narrow, -1, -2), _flat(part))
    q_grad = reshape(cast(matmul(narrow, k), FLOAT32_BYTES), part.shape)
    return [q_grad, *(cast(x, FLOAT32_BYTES) for x in (k_grad, v_grad))]


def _scores(part: Array, k: Array, piece: Piece, pieces: _Pieces) -> tuple[Array, Array | None]:
    """Return the scores (B, G, R, n, K), and the slope of what caps them, if it does."""
    rule = pieces.rule
    mask, distance = mask_of(part.shape[0], piece, pieces.keys, rule.window)
    scores = times(cast(matmul(_flat(part), swapaxes(k, -1, -2)), FLOAT32_BYTES))
    scores, slope = reshape(scores, (*part.shape[:4], k.shape[2])), None
    if rule.softcap is not None:
        capped = tanh(times(scores))
        scores, slope = times(capped), minus_from(square(capped))
    if rule.slopes:
        slopes = counted((*part.shape[1:3], 1, 1))
        wide = converted(expand(distance, 1), FLOAT32_BYTES)
        scores = subtract(scores, multiply(slopes, wide))
    return where(expand(mask, 1), scores), slope


def _nothing(part: Array, sinks: Array | None) -> list[Array]:
    """Return the state before any key was seen."""
    shape, out = (*part.shape[:4], 1), zeros(part.shape, FLOAT32_BYTES)
    if sinks is None:
        return [zeros(shape, FLOAT32_BYTES), zeros(shape, FLOAT32_BYTES), out]
    by_head = reshape(cast(sinks, FLOAT32_BYTES), (*part.shape[1:3], 1, 1))
    return [broadcast(by_head, shape), zeros(shape, FLOAT32_BYTES), out]


def _followed(q: Array) -> tuple[int, list[slice]]:
    """Return how many queries of a tile are not followed, and the pieces of those that are."""
    some = spans(q.shape[2], QUERIES)[-FOLLOWED:]
    return some[0].start, some


def _in_front(front: Sequence[Array]) -> _KeyPiece | None:
    return _KeyPiece(0, front[0], front[1]) if front else None


def _grads_of(keys: _KeyPiece) -> list[Array]:
    return keys.grads or [zeros(x.shape, x.width) for x in (keys.k, keys.v)]


def _statistics(q: Array, k: Array, count: int) -> tuple[int, ...]:
    return (q.shape[0], k.shape[1], q.shape[1] // k.shape[1], count, 1)


def _grouped(x: Array, groups: int) -> Array:
    """Return (B, G, R, n, h) of (B, H, n, h)."""
    return reshape(x, (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))


def _ungrouped(x: Array) -> Array:
    """Return (B, H, n, h) of (B, G, R, n, h)."""
    return flatten(x, 1, 2)


def _flat(x: Array) -> Array:
    """Return (B, G, R n, ...) of (B, G, R, n, ...)."""
    return flatten(x, 2, 3)


def _of_rows(grad: Array, keys: Array) -> Array:
    """Return the gradients of keys that all rows share, or of those of each."""
    return grad if grad.shape[0] == keys.shape[0] else total(grad, (0,))


def _in_place(there: Array, part: Array) -> Array:
    """Return the sum of what is there, whose place it takes, and another array."""
    return Array(there.shape, there.width, Operation((there, part), views=(0,)))
