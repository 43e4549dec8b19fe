"""Attention of a tile of a block: its queries against the keys of all tiles up to it.

Scores of some queries and some keys are made at a time, one piece after the other, and what is known
of the softmax is kept up from piece to piece. On the way back each piece is made again from the
log-sum-exp of all of them (FlashAttention, Dao 2022, appendix B).

B rows, H heads, G key/value heads, R = H/G, S positions of a row, N of a tile, n queries and K keys
of a piece, h channels of a head, P keys in front of documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import mlx.core as mx

from edgetune.network.ops import Attended
from edgetune.network.tiles import spans
from edgetune.shape import Attention
from edgetune_mlx.attention import Keys, Piece, distances, within

QUERIES: Final = 256
"""Queries whose scores are held at once."""

KEYS: Final = 1024
"""Keys of a piece."""

LEAST: Final = -1e30
"""What the highest score is known to be before any was seen."""

Place = tuple[slice, ...]
ALL: Final = slice(None)


@dataclass(slots=True)
class KeyPiece:
    """Keys and values (B, G, K, h) of positions from ``start`` on; ``grads`` are float32 ones of both.

    Gradients are none before the first.
    """

    start: int
    k: mx.array
    v: mx.array
    grads: list[mx.array] = field(default_factory=list)

    def add(self, place: Place, parts: Sequence[mx.array]) -> None:
        """Add gradients of some rows, heads and positions."""
        if all(each == ALL for each in place):
            pairs = zip(self.grads, parts, strict=True) if self.grads else ()
            self.grads = [a + b for a, b in pairs] or list(parts)
            return
        whole = self.grads or [mx.zeros(self.k.shape), mx.zeros(self.v.shape)]
        self.grads = [a.at[place].add(b) for a, b in zip(whole, parts, strict=True)]


@dataclass(slots=True)
class Tile:
    """The positions from ``start`` to before ``stop`` of every row of a block.

    ``past`` has the keys and values of the tiles before, of which a view sees some rows and heads;
    ``keys`` says which keys the queries of whole rows see. ``own`` are the tile's keys and values
    (B, G, N, h), once they are there. ``before`` positions are none of its own: it reads them.
    A mixer that carries a state goes on from ``state``, the one ``behind`` the tile comes of it.
    """

    start: int
    stop: int
    past: Sequence[KeyPiece]
    keys: Keys
    place: tuple[slice, slice] = (ALL, ALL)
    own: tuple[mx.array, ...] = ()
    before: int = 0
    state: mx.array | None = None
    behind: mx.array | None = None

    @property
    def passed(self) -> list[mx.array]:
        """What later tiles read of it: keys and values, or the state behind it."""
        return [*self.own, *([] if self.behind is None else [self.behind])]

    def left(self) -> list[KeyPiece]:
        """Return the tile's keys and values as the tiles after it see them."""
        found = []
        for span in spans(self.stop - self.start, KEYS) if self.own else ():
            k, v = (mx.contiguous(x[:, :, span]) for x in self.own)
            found.append(KeyPiece(self.start + span.start, k, v))
        return found


def attend_in_tile(
    attended: Attended[mx.array], front: tuple[mx.array, mx.array] | None = None
) -> mx.array:
    """Return the output (B, H, N, h) for the queries of a tile.

    ``front`` are keys and values (1, G, P, h) in front of those of every document. The way back
    adds to the gradients of the keys of the tiles before.
    """
    tile = attended.keys.tile
    assert tile is not None
    keys = replace(attended.keys, before=0 if front is None else front[0].shape[2])
    pieces = _Pieces(tile, attended.rule, keys, attended.sinks)
    custom: Any = mx.custom_function(partial(_forward, pieces=pieces))

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(primals: Any, grads: Any, found: Any) -> Any:
        return _backward(primals, grads[0], found, pieces)

    out: mx.array = custom(attended.q, attended.k, attended.v, *(front or ()))[0]
    return out


@dataclass(frozen=True, slots=True)
class _Seen:
    """Some keys that queries see: where they are, and which part of these."""

    keys: KeyPiece
    place: Place
    piece: Piece
    """Queries and keys by their numbers in a row, those in front counted."""

    @property
    def k(self) -> mx.array:
        """The keys (B, G, K, h)."""
        return self.keys.k[self.place]

    @property
    def v(self) -> mx.array:
        """The values (B, G, K, h)."""
        return self.keys.v[self.place]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The pieces that the attention of a tile is computed in."""

    tile: Tile
    rule: Attention
    keys: Keys
    sinks: mx.array | None

    def queries(self) -> Iterator[slice]:
        """Yield some queries of the tile at a time."""
        yield from spans(self.tile.stop - self.tile.start, QUERIES)

    def seen(self, some: slice, own: KeyPiece, front: KeyPiece | None) -> Iterator[_Seen]:
        """Yield what some queries see, of which each sees itself at least."""
        tile, before = self.tile, self.keys.before
        queries = slice(tile.start + some.start, tile.start + some.stop)
        first = self._first(queries)
        if front is not None and first < before:
            yield _Seen(front, (ALL,) * 3, Piece(queries, slice(0, before)))
        for past in tile.past:
            span = slice(before + past.start, before + past.start + past.k.shape[2])
            if first < span.stop:
                yield _Seen(past, (*tile.place, ALL), Piece(queries, span))
        for cut in spans(some.stop, KEYS):
            span = slice(before + tile.start + cut.start, before + tile.start + cut.stop)
            if first < span.stop:
                yield _Seen(own, (ALL, ALL, cut), Piece(queries, span))

    def _first(self, queries: slice) -> int:
        """Return the first key that any of them sees."""
        if self.rule.window is None or self.keys.apart:
            return 0
        first: int = self.keys.before + queries.start - self.rule.window + 1
        return first


def _forward(
    q: mx.array, k: mx.array, v: mx.array, *front: mx.array, pieces: _Pieces
) -> tuple[mx.array, mx.array]:
    """Return the output (B, H, N, h) and the log-sum-exp (B, G, R, N, 1)."""
    own, before = KeyPiece(pieces.tile.start, k, v), _in_front(front)
    outputs: list[mx.array] = []
    sums: list[mx.array] = []
    for some in pieces.queries():
        part, *_ = mx.depends([_grouped(q[:, :, some], k.shape[1])], outputs[-1:] or [q])
        state = _nothing(part, pieces.sinks)
        for seen in pieces.seen(some, own, before):
            inputs = mx.depends([seen.k, seen.v], list(state))  # one piece at a time
            state = _with_piece(state, part, inputs, seen.piece, pieces)
        highest, total, out = state
        outputs.append((out / total).astype(q.dtype).reshape(*q.shape[:2], -1, q.shape[3]))
        sums.append(highest + mx.log(total))
    return mx.concatenate(outputs, axis=2), mx.concatenate(sums, axis=3)


def _backward(
    primals: Sequence[mx.array], grad: mx.array, found: Sequence[mx.array], pieces: _Pieces
) -> list[mx.array]:
    """Return the gradients of q, k, v and of what is in front, one piece after the other."""
    q, k, v, *others = primals
    own, front = KeyPiece(pieces.tile.start, k, v), _in_front(others)
    q_grads: list[mx.array] = []
    for some in pieces.queries():
        inputs = [_grouped(x[:, :, some], k.shape[1]) for x in (q, grad, found[0])]
        part, by_query, out = mx.depends(inputs, q_grads[-1:] or [grad])
        fixed = (by_query.astype(mx.float32) * out.astype(mx.float32)).sum(-1, keepdims=True)
        total, done = mx.zeros(part.shape), [fixed]
        for seen in pieces.seen(some, own, front):
            inputs = mx.depends([seen.k, seen.v], done)  # one piece at a time
            some_sums = found[1][:, :, :, some]
            parts = _piece_back((part, by_query), inputs, (fixed, some_sums), seen.piece, pieces)
            total = total + parts[0]
            seen.keys.add(seen.place, [_of_rows(x, seen.keys.k) for x in parts[1:]])
            done = [total, *seen.keys.grads]
        q_grads.append(total.astype(q.dtype).reshape(*q.shape[:2], -1, q.shape[3]))
    of_keys = [
        x.astype(q.dtype) for each in (own, front) if each is not None for x in _grads_of(each)
    ]
    return [mx.concatenate(q_grads, axis=2), *of_keys]


def _with_piece(
    state: tuple[mx.array, ...], part: mx.array, keys: Sequence[mx.array], piece: Piece,
    pieces: _Pieces,
) -> tuple[mx.array, ...]:  # fmt: skip
    """Return the highest score (B, G, R, n, 1), the sum, and the output, with those of a piece."""
    (highest, total, out), (k, v) = state, keys
    scores, _ = _scores(part, k, piece, pieces)
    raised = mx.maximum(highest, scores.max(-1, keepdims=True))
    weights = mx.exp(scores - raised)
    kept = mx.exp(highest - raised)
    total = total * kept + weights.sum(-1, keepdims=True)
    made = _flat(weights.astype(part.dtype)) @ v
    return raised, total, out * kept + made.astype(mx.float32).reshape(out.shape)


def _piece_back(
    by_query: tuple[mx.array, mx.array], keys: Sequence[mx.array],
    known: tuple[mx.array, mx.array], piece: Piece, pieces: _Pieces,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """Return the float32 gradients of queries (B, G, R, n, h), keys and values (B, G, K, h).

    ``by_query`` are the queries and the gradients of the output, ``known`` what is summed of the
    latter, and the log-sum-exp of all pieces.
    """
    (part, grad), (k, v), (fixed, log_sum) = by_query, keys, known
    scores, slope = _scores(part, k, piece, pieces)
    weights = mx.exp(scores - log_sum)
    v_grad = _flat(weights.astype(part.dtype)).swapaxes(-1, -2) @ _flat(grad)
    going = (_flat(grad) @ v.swapaxes(-1, -2)).astype(mx.float32).reshape(weights.shape)
    going = (going - fixed) * weights
    if slope is not None:
        going = going * slope
    narrow = _flat((going * pieces.rule.scale).astype(part.dtype))
    k_grad = narrow.swapaxes(-1, -2) @ _flat(part)
    q_grad = (narrow @ k).astype(mx.float32).reshape(part.shape)
    return q_grad, k_grad.astype(mx.float32), v_grad.astype(mx.float32)


def _scores(
    part: mx.array, k: mx.array, piece: Piece, pieces: _Pieces
) -> tuple[mx.array, mx.array | None]:
    """Return the scores (B, G, R, n, K), and the slope of what caps them, if it does."""
    rule = pieces.rule
    distance, same = distances(piece, pieces.keys.before, pieces.keys)
    mask = within(distance, rule.window)
    mask = mask if same is None else mask & same
    scores = (_flat(part) @ k.swapaxes(-1, -2)).astype(mx.float32) * rule.scale
    scores, slope = scores.reshape(*part.shape[:4], k.shape[2]), None
    if rule.softcap is not None:
        capped = mx.tanh(scores / rule.softcap)
        scores, slope = capped * rule.softcap, 1 - capped.square()
    if rule.slopes:
        slopes = mx.array(rule.slopes).reshape(k.shape[1], -1, 1, 1)
        scores = scores - slopes * distance[:, None]
    return mx.where(mask[:, None], scores, mx.array(-mx.inf, mx.float32)), slope


def _nothing(part: mx.array, sinks: mx.array | None) -> tuple[mx.array, ...]:
    """Return the state before any key was seen; a sink is one whose value is zero."""
    shape, out = (*part.shape[:4], 1), mx.zeros(part.shape)
    if sinks is None:
        return mx.full(shape, LEAST), mx.zeros(shape), out
    by_head = sinks.astype(mx.float32).reshape(*part.shape[1:3], 1, 1)
    return mx.broadcast_to(by_head, shape), mx.ones(shape), out


def _in_front(front: Sequence[mx.array]) -> KeyPiece | None:
    return KeyPiece(0, front[0], front[1]) if front else None


def _grads_of(keys: KeyPiece) -> list[mx.array]:
    return keys.grads or [mx.zeros_like(keys.k), mx.zeros_like(keys.v)]


def _grouped(x: mx.array, groups: int) -> mx.array:
    """Return (B, G, R, n, h) of (B, H, n, h)."""
    return x.reshape(len(x), groups, -1, *x.shape[2:])


def _flat(x: mx.array) -> mx.array:
    """Return (B, G, R n, ...) of (B, G, R, n, ...)."""
    return x.flatten(2, 3)


def _of_rows(grad: mx.array, keys: mx.array) -> mx.array:
    """Return the gradients of keys that all rows share, or of those of each."""
    return grad if len(grad) == len(keys) else grad.sum(0, keepdims=True)
