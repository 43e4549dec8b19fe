"""Causal attention over some queries at a time, with a backward pass that does the same.

Metal has no fused backward kernel: the scores of all queries at once would take memory that
grows with the square of the length. (Not yet seen on a Mac: that pieces of this size are fast
there.) B rows, H heads, G key/value heads, S queries, K keys, h
channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from edgetune.network.ops import Attended
from edgetune.shape import Attention
from edgetune_mlx.linear import recomputed

if TYPE_CHECKING:
    from edgetune_mlx.tile_attention import Tile

QUERY_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Keys:
    """Which keys a query sees, besides those that come after it.

    ``documents`` (B, S) numbers the documents of rows that hold several, and ``positions``
    (B, S) start again with each: attention does too. The first ``before`` keys are none of the
    row's own: they stand at the first positions of every document, whose tokens come after.
    ``trunks`` (B, S) has for each token the number of the tokens before it that it goes on from,
    its own number where it goes on from none; None where none does. In a ``tile`` of a block all of
    this is of whole rows.
    """

    documents: mx.array | None
    positions: mx.array
    trunks: mx.array | None = None
    before: int = 0
    tile: Tile | None = None

    @property
    def apart(self) -> bool:
        """Whether keys that are near for a query may be far from it in the row."""
        return self.trunks is not None or (self.before > 0 and self.documents is not None)

    def of_rows(self, rows: slice) -> Keys:
        """Return the same for some rows."""
        documents = None if self.documents is None else self.documents[rows]
        trunks = None if self.trunks is None else self.trunks[rows]
        tile = self.tile and replace(self.tile, place=(rows, self.tile.place[1]))
        return replace(
            self, documents=documents, positions=self.positions[rows], trunks=trunks, tile=tile
        )

    def of_heads(self, heads: slice) -> Keys:
        """Return the same for some key/value heads."""
        return replace(
            self, tile=self.tile and replace(self.tile, place=(self.tile.place[0], heads))
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """Some queries, and the keys that they may see; the last query sees the last key."""

    queries: slice
    keys: slice


def causal(attended: Attended[mx.array]) -> mx.array:
    """Return the attention output (B, H, S, h) for q (B, H, S, h) and k, v (B, G, K, h).

    With fewer queries than keys, the queries are the last ones.
    """
    q, k, v, rule, keys = attended.q, attended.k, attended.v, attended.rule, attended.keys
    near = None if keys.apart else rule.window
    pieces = tuple(_pieces(q.shape[2], k.shape[2], near))
    part = partial(
        _attend, rule=rule, keys=keys, offset=k.shape[2] - q.shape[2], sinks=attended.sinks
    )
    custom: Any = mx.custom_function(partial(_forward, part=part, pieces=pieces))

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(primals: Any, cotangent: mx.array, _: Any) -> Any:
        q, k, v = primals
        return _backward(q, k, v, cotangent, part=part, pieces=pieces)

    out: mx.array = custom(q, k, v)
    return out


def behind(attended: Attended[mx.array], k: mx.array, v: mx.array) -> Attended[mx.array]:
    """Return attention to k and v (1, G, P, h) in front of every document's own keys as well."""
    keys = replace(attended.keys, before=k.shape[2])
    return attended.with_keys(_preceded(attended.k, k), _preceded(attended.v, v), keys)


def in_groups(attended: Attended[mx.array], size: int, *, late: bool) -> Attended[mx.array]:
    """Return attention within groups of ``size`` tokens of a document, which count as documents.

    If ``late``, groups begin half a group later, but for the first, which is as much longer.
    """
    keys, rule, half = attended.keys, attended.rule, size // 2 if late else 0
    groups = mx.maximum(keys.positions - half, 0) // size
    if keys.documents is not None:
        groups = groups + keys.documents * (keys.positions.shape[1] // size + 2)
    longest = size + half
    window = longest if rule.window is None else min(rule.window, longest)
    rule = replace(rule, window=window)
    return replace(attended, keys=replace(keys, documents=groups), rule=rule)


def _preceded(x: mx.array, before: mx.array) -> mx.array:
    """Return x (B, G, S, h) with ``before`` (1, G, P, h) in front of each row."""
    return mx.concatenate([mx.broadcast_to(before, (len(x), *before.shape[1:])), x], axis=2)


def attend_all(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Return the output (B, H, S, h) of attention to keys (1, G, P, h) that all queries see."""
    return recomputed(partial(_attend_all, scale=scale))(q, k, v)


def _attend_all(q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
    k, v = (mx.broadcast_to(x, (len(q), *x.shape[1:])) for x in (k, v))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)


def _pieces(queries: int, keys: int, window: int | None) -> Iterator[Piece]:
    offset = keys - queries
    for start in range(0, queries, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, queries)
        first = 0 if window is None else max(0, offset + start - window + 1)
        yield Piece(slice(start, stop), slice(first, offset + stop))


def _forward(
    q: mx.array, k: mx.array, v: mx.array, *, part: Any, pieces: Sequence[Piece]
) -> mx.array:
    outputs: list[mx.array] = []
    for piece in pieces:
        inputs = _after(outputs[-1:], _cut(q, k, v, piece))
        outputs.append(part(*inputs, piece=piece))
    return mx.concatenate(outputs, axis=2)


def _backward(
    q: mx.array, k: mx.array, v: mx.array, grad: mx.array, *, part: Any, pieces: Sequence[Piece]
) -> tuple[mx.array, mx.array, mx.array]:
    """Return the gradients of q, k and v, one piece after the other."""
    q_grads: list[mx.array] = []
    k_grad, v_grad = mx.zeros_like(k), mx.zeros_like(v)
    for piece in pieces:
        before = [q_grads[-1], k_grad, v_grad] if q_grads else [grad]
        inputs = _after(before, _cut(q, k, v, piece))
        seen = grad[:, :, piece.queries]
        parts = mx.vjp(partial(part, piece=piece), inputs, [seen])[1]
        q_grads.append(parts[0])
        k_grad = k_grad.at[:, :, piece.keys].add(parts[1])
        v_grad = v_grad.at[:, :, piece.keys].add(parts[2])
    return mx.concatenate(q_grads, axis=2), k_grad, v_grad


def _cut(q: mx.array, k: mx.array, v: mx.array, piece: Piece) -> list[mx.array]:
    return [q[:, :, piece.queries], k[:, :, piece.keys], v[:, :, piece.keys]]


def _after(before: Sequence[mx.array], inputs: list[mx.array]) -> list[mx.array]:
    """Return the inputs, not there before ``before`` is: else all pieces would be live at once."""
    return mx.depends(inputs, list(before)) if before else inputs


def _attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    rule: Attention,
    keys: Keys,
    offset: int,
    sinks: mx.array | None,
    piece: Piece,
) -> mx.array:
    distance, same = distances(piece, offset, keys)
    mask = within(distance, rule.window)
    mask = mask if same is None else mask & same
    if rule.softcap is None and not rule.slopes:
        sinks = None if sinks is None else sinks.astype(q.dtype)
        return mx.fast.scaled_dot_product_attention(
            q, k, v, scale=rule.scale, mask=mask, sinks=sinks
        )
    return _explicit(q, k, v, rule, distance, mask)


def _explicit(
    q: mx.array, k: mx.array, v: mx.array, rule: Attention, distance: mx.array, mask: mx.array
) -> mx.array:
    """Compute what the fused kernel cannot: scores that are capped, or fall with the distance."""
    rows, groups = q.shape[0], k.shape[1]
    grouped = q.reshape(rows, groups, -1, *q.shape[2:])  # (B, G, H/G, S, h)
    scores = (grouped @ k[:, :, None].swapaxes(-1, -2)).astype(mx.float32) * rule.scale
    if rule.softcap is not None:
        scores = mx.tanh(scores / rule.softcap) * rule.softcap
    if rule.slopes:
        slopes = mx.array(rule.slopes).reshape(groups, -1, 1, 1)
        scores = scores - slopes * distance[:, None]
    hidden = mx.array(-mx.inf, mx.float32)
    weights = mx.softmax(mx.where(mask[:, None], scores, hidden), axis=-1, precise=True)
    return (weights.astype(q.dtype) @ v[:, :, None]).reshape(q.shape)


def distances(piece: Piece, offset: int, keys: Keys) -> tuple[mx.array, mx.array | None]:
    """Return how far keys are before each query, (1 or B, 1, S, K), and which are in reach at all.

    None: all are.
    """
    at = mx.arange(piece.queries.start, piece.queries.stop)[:, None] + offset
    key = mx.arange(piece.keys.start, piece.keys.stop)[None]
    distance = (at - key)[None, None]
    if keys.documents is None:
        return distance, None
    every = key < keys.before
    numbers = mx.pad(keys.documents, [(0, 0), (keys.before, 0)])[:, None, None, piece.keys]
    same = keys.documents[:, None, piece.queries, None] == numbers
    inside = keys.positions[:, None, piece.queries, None] - key
    if keys.trunks is not None:
        same = same | (keys.trunks[:, None, piece.queries, None] == numbers)
        places = mx.pad(keys.positions, [(0, 0), (keys.before, 0)])[:, None, None, piece.keys]
        distance = keys.positions[:, None, piece.queries, None] - places
    return mx.where(every, inside, distance), every | same


def within(distance: mx.array, window: int | None) -> mx.array:
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)
