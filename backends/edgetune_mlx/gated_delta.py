"""Gated DeltaNet's mixer: a short convolution, and the delta rule over what it makes.

In pieces of tokens, in float32, rounded once. The backward pass starts from the inputs alone and
goes through the pieces from the last to the first, the states between which it makes again. B
rows, S positions, H heads of values, G of keys, R = H / G, T tokens of a piece, K channels of a
key, V of a value, C = 2 G K + H V channels that are convolved. The formulas are derived in
Yang et al. 2024 (2412.06464).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import mlx.core as mx

from edgetune.mixer import PIECE, GatedDelta
from edgetune_mlx.convolution import convolved

LEAST = 1e-6
"""Added to squared lengths of queries and keys."""

Own = Sequence[mx.array]
"""The mixer's own tensors: convolution (C, 1, taps), ``A_log`` and ``dt_bias`` (H)."""


def gated_delta(
    x: mx.array, b: mx.array, a: mx.array, own: Own, mixer: GatedDelta, documents: mx.array | None
) -> mx.array:
    """Return what is read (B, S, H V) of x (B, S, C), b and a (B, S, H)."""
    piece = partial(_piece, mixer=mixer, documents=documents)
    custom: Any = mx.custom_function(partial(_forward, piece=piece, mixer=mixer))

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(primals: Any, cotangent: mx.array, _: Any) -> Any:
        return _backward(mx.depends(list(primals), [cotangent]), cotangent, piece, mixer)

    out: mx.array = custom(x, b, a, *own)
    return out


def gated_delta_after(
    x: mx.array,
    b: mx.array,
    a: mx.array,
    own: Own,
    mixer: GatedDelta,
    before: tuple[mx.array, mx.array] | None,
) -> tuple[mx.array, tuple[mx.array, mx.array]]:
    """Return the same of the next tokens of one document, and what its next ones need.

    ``before`` are the last inputs (1, taps - 1, C) and the state, as this returned them.
    """
    kept = mixer.taps - 1
    last = mx.zeros((1, kept, x.shape[2]), x.dtype) if before is None else before[0]
    state = _empty_state(x, mixer) if before is None else before[1]
    whole = mx.concatenate([last, x], axis=1)
    outputs = []
    for start, stop in _edges(x.shape[1]):
        window = whole[:, start : stop + kept]
        parts = (window, b[:, start:stop], a[:, start:stop], state)
        out, state = _rule(*parts, *own, mixer=mixer, numbers=None)
        outputs.append(out)
    return mx.concatenate(outputs, axis=1), (whole[:, whole.shape[1] - kept :], state)


def _forward(
    x: mx.array, b: mx.array, a: mx.array, *own: mx.array, piece: Any, mixer: GatedDelta
) -> mx.array:
    outputs: list[mx.array] = []
    state = _empty_state(x, mixer)
    for start, stop in _edges(x.shape[1]):
        cut = mx.depends(_cut(x, b, a, start, stop, mixer), [state])  # one piece at a time
        out, state = piece(*cut, state, *own, start=start)
        outputs.append(out)
    return mx.concatenate(outputs, axis=1)


def _backward(
    inputs: Sequence[mx.array], grad: mx.array, piece: Any, mixer: GatedDelta
) -> list[mx.array]:
    """Return the gradients of x, b, a and the mixer's own tensors, one piece after the other."""
    x, b, a, *own = inputs
    edges, states = _edges(x.shape[1]), [_empty_state(x, mixer)]
    for start, stop in edges[:-1]:
        cut = mx.depends(_cut(x, b, a, start, stop, mixer), [states[-1]])
        states.append(piece(*cut, states[-1], *own, start=start)[1])
    state_grad = mx.zeros_like(states[0])
    early: mx.array | None = None
    parts: list[list[mx.array]] = []
    own_grads = [mx.zeros(each.shape, mx.float32) for each in own]
    for start, stop in reversed(edges):
        cut = [*_cut(x, b, a, start, stop, mixer), states.pop()]
        before = cut[0].shape[1] - (stop - start)
        given = [grad[:, start:stop], state_grad]
        cut = mx.depends(cut, [state_grad, *own_grads])  # one piece at a time
        found = mx.vjp(partial(piece, start=start), [*cut, *own], given)[1]
        early, x_grad = _with_early(early, found[0], before)
        parts.append([x_grad, found[1], found[2]])
        state_grad = found[3]
        own_grads = [
            total + part.astype(mx.float32)
            for total, part in zip(own_grads, found[4:], strict=True)
        ]
    of_tokens = [mx.concatenate([each[i] for each in reversed(parts)], axis=1) for i in range(3)]
    return [*of_tokens, *(g.astype(each.dtype) for g, each in zip(own_grads, own, strict=True))]


def _with_early(early: mx.array | None, grad: mx.array, before: int) -> tuple[mx.array, mx.array]:
    """Return the gradient of the ``before`` tokens before a piece, and that of the piece.

    ``early`` is the former of the piece behind, which is added to the last tokens.
    """
    own = grad[:, before:]
    if early is not None and early.shape[1]:
        missing = early.shape[1] - own.shape[1]
        assert missing <= 0, "pieces are longer than the convolution reaches, but for the last"
        own = own.at[:, own.shape[1] - early.shape[1] :].add(early)
    return grad[:, :before], own


def _edges(positions: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, positions, PIECE), positions]))


def _cut(
    x: mx.array, b: mx.array, a: mx.array, start: int, stop: int, mixer: GatedDelta
) -> list[mx.array]:
    """Return x of a piece and of the tokens before that its convolution reads, and b and a."""
    first = max(0, start - mixer.taps + 1)
    return [x[:, first:stop], b[:, start:stop], a[:, start:stop]]


def _piece(
    x: mx.array, b: mx.array, a: mx.array, state: mx.array, *own: mx.array,
    mixer: GatedDelta, documents: mx.array | None, start: int,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """Return what a piece reads (B, T, H V), and the state behind it."""
    count = b.shape[1]
    before = x.shape[1] - count
    numbers = None if documents is None else documents[:, start - before : start + count]
    missing = mixer.taps - 1 - before
    if missing:
        x = mx.pad(x, [(0, 0), (missing, 0), (0, 0)])
        if numbers is not None:
            numbers = mx.pad(numbers, [(0, 0), (missing, 0)], mode="edge")
    return _rule(x, b, a, state, *own, mixer=mixer, numbers=numbers)


def _rule(
    window: mx.array, b: mx.array, a: mx.array, state: mx.array, conv: mx.array,
    a_log: mx.array, dt_bias: mx.array, *, mixer: GatedDelta, numbers: mx.array | None,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """Return what is read (B, T, H V) of a window (B, taps - 1 + T, C), and the state behind it.

    ``numbers`` (B, taps - 1 + T) are those of the tokens' documents, if rows hold several.
    """
    kept, (rows, count, _) = mixer.taps - 1, b.shape
    y = convolved(window.astype(mx.float32), conv, None, numbers)[:, kept:]
    y = y * mx.sigmoid(y)
    q, k, v = mx.split(y, [mixer.keys, 2 * mixer.keys], axis=-1)
    q = _unit(q, mixer)[:, :, None] * mixer.key_dim**-0.5  # (B, G, 1, T, K)
    k = _unit(k, mixer)[:, :, None]
    shared = mixer.value_heads // mixer.key_heads
    v = v.reshape(rows, count, mixer.key_heads, shared, mixer.value_dim).transpose(0, 2, 3, 1, 4)
    beta = _by_head(mx.sigmoid(b.astype(mx.float32)), mixer)  # (B, G, R, T, 1)
    speed = -mx.exp(a_log.astype(mx.float32))
    rate = speed * _softplus(a.astype(mx.float32) + dt_bias.astype(mx.float32))
    decay = mx.cumsum(_by_head(rate, mixer), axis=3)
    pairs, start, end, through = _factors(
        decay, None if numbers is None else numbers[:, kept - 1 :]
    )
    corrected = beta * (v - start * (k @ state))
    system = mx.tril((k @ k.swapaxes(-1, -2)) * pairs * beta, -1)
    new = _solved(system, corrected)
    out = start * (q @ state) + ((q @ k.swapaxes(-1, -2)) * pairs) @ new
    behind = through * state + (k * end).swapaxes(-1, -2) @ new
    out = out.transpose(0, 3, 1, 2, 4).reshape(rows, count, mixer.values)
    return out.astype(window.dtype), behind


def _factors(
    decay: mx.array, numbers: mx.array | None
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Return by how much decays what tokens read: of others, of the state; what is kept, and of it.

    ``decay`` (B, G, R, T, 1); ``numbers`` (B, 1 + T) begin with the token before.
    """
    last = decay[..., -1:, :]
    apart = decay - decay.swapaxes(-1, -2)
    seen = mx.tril(mx.ones(apart.shape[-2:], mx.bool_))
    start, end, through = mx.exp(decay), mx.exp(last - decay), mx.exp(last)
    if numbers is not None:
        own = numbers[:, None, None, 1:, None]
        before, behind = numbers[:, None, None, :1, None], numbers[:, None, None, -1:, None]
        seen = seen & (own == own.swapaxes(-1, -2))
        start, end = mx.where(own == before, start, 0), mx.where(own == behind, end, 0)
        through = mx.where(before == behind, through, 0)
    return mx.exp(mx.where(seen, apart, -mx.inf)), start, end, through


def _solved(system: mx.array, right: mx.array) -> mx.array:
    """Return x of ``(1 + system) x = right`` for a strictly lower triangle (..., T, T).

    The inverse is put together of those of blocks on the diagonal, twice as large each time: no
    power of the matrix is formed, which would be far larger than the inverse is.
    """
    custom: Any = mx.custom_function(lambda system, right: _inverse(system) @ right)

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(primals: Any, grad: mx.array, solved: mx.array) -> tuple[mx.array, mx.array]:
        system, _ = primals
        right_grad = _inverse(system).swapaxes(-1, -2) @ grad
        return mx.tril(-right_grad @ solved.swapaxes(-1, -2), -1), right_grad

    out: mx.array = custom(system, right)
    return out


def _inverse(system: mx.array) -> mx.array:
    """Return the inverse of ``1 + system`` (..., T, T)."""
    count, size = system.shape[-1], 1
    inverse = mx.broadcast_to(mx.eye(count), system.shape)
    at = mx.arange(count)
    while size < count:
        block = at // size
        # of each block of twice the size the lower left quarter
        quarter = (block[:, None] == block[None] + 1) & (block[:, None] % 2 == 1)
        inverse = inverse - inverse @ mx.where(quarter, system, 0) @ inverse
        size *= 2
    return inverse


def _unit(x: mx.array, mixer: GatedDelta) -> mx.array:
    """Return x (B, T, G K) as (B, G, T, K), of length one."""
    x = x.reshape(*x.shape[:2], mixer.key_heads, mixer.key_dim).swapaxes(1, 2)
    return x * mx.rsqrt(mx.square(x).sum(-1, keepdims=True) + LEAST)


def _by_head(x: mx.array, mixer: GatedDelta) -> mx.array:
    """Return x (B, T, H) as (B, G, R, T, 1)."""
    shared = mixer.value_heads // mixer.key_heads
    return x.reshape(*x.shape[:2], mixer.key_heads, shared).transpose(0, 2, 3, 1)[..., None]


def _softplus(x: mx.array) -> mx.array:
    return mx.logaddexp(x, 0)


def _empty_state(x: mx.array, mixer: GatedDelta) -> mx.array:
    """Return the state (B, G, R, K, V) of the beginning."""
    shared = mixer.value_heads // mixer.key_heads
    return mx.zeros((len(x), mixer.key_heads, shared, mixer.key_dim, mixer.value_dim))
