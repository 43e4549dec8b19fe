"""Attention over some queries at a time, as the MLX engine writes it.

B rows, H heads, G key/value heads, S queries, K keys, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from edgetune.memory.lazy.arrays import counted, made_of, matmul, softmax
from edgetune.memory.lazy.elementwise import (
    add,
    cast,
    compared,
    converted,
    multiply,
    plus,
    subtract,
    tanh,
    times,
    where,
)
from edgetune.memory.lazy.gradients import custom, recomputed, vjp
from edgetune.memory.lazy.graph import Array, Grads, Wanted
from edgetune.memory.lazy.views import (
    broadcast,
    concatenate,
    cut,
    depends,
    expand,
    reshape,
    swapaxes,
    updated,
    zeros,
)
from edgetune.network.ops import Attended
from edgetune.shape import Attention
from edgetune.storage import FLOAT32_BYTES

QUERY_CHUNK = 256
"""Queries of a piece."""

PIECES = 3
"""Pieces that are followed one by one: the last ones, which see the most keys."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Whether rows hold several documents, which may go on from others, and keys before each."""

    documents: bool
    forked: bool = False
    before: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Some queries, and the keys that they may see."""

    queries: tuple[int, int]
    keys: tuple[int, int]


def causal(attended: Attended[Array]) -> Array:
    """Return the attention output (B, H, S, h) for q (B, H, S, h) and k, v (B, G, K, h)."""
    q, k, v, rule, keys = attended.q, attended.k, attended.v, attended.rule, attended.keys
    apart = keys.forked or (keys.before and keys.documents)
    near = None if apart else rule.window
    pieces = tuple(_pieces(q.shape[2], k.shape[2], near))
    part = partial(_attend, rule=rule, keys=keys, sinks=attended.sinks)

    def back(primals: list[Array], grad: Array, _: Array, wanted: Wanted) -> Grads:
        q, k, v = primals
        grads = _backward(q, k, v, grad, part=part, pieces=pieces)
        return [each if want else None for each, want in zip(grads, wanted, strict=False)]

    return custom(partial(_forward, part=part, pieces=pieces), back, q, k, v)


def _pieces(queries: int, keys: int, window: int | None) -> Iterator[Piece]:
    offset = keys - queries
    for start in range(0, queries, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, queries)
        first = 0 if window is None else max(0, offset + start - window + 1)
        yield Piece((start, stop), (first, offset + stop))


def _forward(
    q: Array, k: Array, v: Array, *, part: partial[Array], pieces: Sequence[Piece]
) -> Array:
    outputs: list[Array] = []
    skipped = max(0, len(pieces) - PIECES)
    if skipped:
        outputs.append(_skipped(pieces[skipped], q, k, v))
    for piece in pieces[skipped:]:
        inputs = _after(outputs[-1:], _cut(q, k, v, piece))
        outputs.append(part(*inputs, piece=piece))
    return concatenate(outputs, 2)


def _backward(
    q: Array, k: Array, v: Array, grad: Array, *, part: partial[Array], pieces: Sequence[Piece]
) -> tuple[Array, Array, Array]:
    """Return the gradients of q, k and v, one piece after the other."""
    q_grads: list[Array] = []
    k_grad, v_grad = zeros(k.shape, k.width), zeros(v.shape, v.width)
    skipped = max(0, len(pieces) - PIECES)
    if skipped:
        q_grads.append(_skipped(pieces[skipped], q, k, v, grad))
    for piece in pieces[skipped:]:
        before = [q_grads[-1], k_grad, v_grad] if q_grads else [grad]
        inputs = _after(before, _cut(q, k, v, piece))
        seen = cut(grad, 2, *piece.queries)
        q_part, k_part, v_part = vjp(partial(part, piece=piece), inputs, [seen])
        q_grads.append(q_part)
        k_grad, v_grad = updated(k_grad, k_part, adds=True), updated(v_grad, v_part, adds=True)
    return concatenate(q_grads, 2), k_grad, v_grad


def _skipped(piece: Piece, q: Array, *others: Array) -> Array:
    """Return what the pieces before one made of queries."""
    return made_of((q, *others), (*q.shape[:2], piece.queries[0], q.shape[3]), q.width)


def _cut(q: Array, k: Array, v: Array, piece: Piece) -> list[Array]:
    return [cut(q, 2, *piece.queries), cut(k, 2, *piece.keys), cut(v, 2, *piece.keys)]


def _after(before: Sequence[Array], inputs: list[Array]) -> list[Array]:
    return list(depends(inputs, before)) if before else inputs


def _attend(
    q: Array, k: Array, v: Array,
    *, rule: Attention, keys: Keys, sinks: Array | None, piece: Piece,
) -> Array:  # fmt: skip
    mask, distance = mask_of(q.shape[0], piece, keys, rule.window)
    if rule.softcap is None and not rule.slopes:
        return _plain(q, k, v, mask, None if sinks is None else cast(sinks, q.width))
    return _explicit(q, k, v, rule, distance, mask)


def _plain(q: Array, k: Array, v: Array, mask: Array | None, sinks: Array | None) -> Array:
    """Compute what MLX's ``scaled_dot_product_attention`` does without a kernel of its own."""
    rows, heads, queries, size = q.shape
    groups, repeats = k.shape[1], heads // k.shape[1]
    if mask is not None:
        mask = broadcast(mask, (rows, heads, queries, k.shape[2]))
    q = times(q)
    if repeats > 1:
        q = reshape(q, (rows, groups, repeats, queries, size))
        k, v = expand(k, 2), expand(v, 2)
    scores = matmul(q, swapaxes(k, -1, -2))
    if mask is not None:
        if repeats > 1:
            mask = reshape(mask, (rows, groups, repeats, *mask.shape[2:]))
        scores = where(mask, scores)
    if sinks is not None:
        shape = (*scores.shape[:-1], 1)
        sinks = expand(sinks, 0, 2, 3)
        if repeats > 1:
            sinks = reshape(sinks, (1, groups, repeats, 1, 1))
        scores = concatenate([broadcast(sinks, shape), scores], -1)
    weights = softmax(scores)
    if sinks is not None:
        weights = cut(weights, -1, 1, weights.shape[-1])
    out = matmul(weights, v)
    return reshape(out, (rows, heads, queries, size)) if repeats > 1 else out


def _explicit(q: Array, k: Array, v: Array, rule: Attention, distance: Array, mask: Array) -> Array:
    """Compute capped scores, or such that fall with the distance."""
    rows, groups = q.shape[0], k.shape[1]
    grouped = reshape(q, (rows, groups, q.shape[1] // groups, *q.shape[2:]))
    scores = times(cast(matmul(grouped, swapaxes(expand(k, 2), -1, -2)), FLOAT32_BYTES))
    if rule.softcap is not None:
        scores = times(tanh(times(scores)))
    if rule.slopes:
        slopes = counted((groups, q.shape[1] // groups, 1, 1))
        wide = converted(expand(distance, 1), FLOAT32_BYTES)
        scores = subtract(scores, multiply(slopes, wide))
    weights = softmax(where(expand(mask, 1), scores))
    return reshape(matmul(cast(weights, q.width), expand(v, 2)), q.shape)


def mask_of(rows: int, piece: Piece, keys: Keys, window: int | None) -> tuple[Array, Array]:
    """Return which keys queries see, and how far these are before them, (1 or B, 1, S, K)."""
    queries, count = piece.queries[1] - piece.queries[0], piece.keys[1] - piece.keys[0]
    at, key = plus(expand(counted((queries,)), 1)), expand(counted((count,)), 0)
    distance = expand(subtract(at, key), 0, 1)
    same: Array | None = None
    if keys.documents:
        places, numbers = counted((rows, 1, queries, 1)), counted((rows, 1, 1, count))
        same = compared(places, numbers)
        inside = subtract(places, key)
        if keys.forked:
            same = add(same, compared(places, numbers))
            distance = subtract(places, numbers)
        distance = where(compared(key), inside, distance)
        same = add(compared(key), same)
    near = compared(distance)
    if window is not None:
        near = multiply(near, compared(distance))
    return near if same is None else multiply(near, same), distance


def preceded(x: Array, before: Array) -> Array:
    """Return x (B, G, S, h) with ``before`` (1, G, P, h) in front of each row."""
    return concatenate([broadcast(before, (x.shape[0], *before.shape[1:])), x], 2)


def attend_all(q: Array, k: Array, v: Array) -> Array:
    """Return the output (B, H, S, h) of attention to keys (1, G, P, h) that all queries see."""
    return recomputed(_attend_all, q, k, v)


def _attend_all(q: Array, k: Array, v: Array) -> Array:
    k, v = (broadcast(x, (q.shape[0], *x.shape[1:])) for x in (k, v))
    return _plain(q, k, v, None, None)
