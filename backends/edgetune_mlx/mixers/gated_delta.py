"""Gated DeltaNet's mixer: a short convolution, and the delta rule over what it makes.

In float32, rounded once. B rows, S positions, H heads of values, G of keys, R = H / G, T tokens of
a piece, K channels of a key, V of a value, C = 2 G K + H V channels that are convolved. The
formulas are derived in Yang et al. 2024 (2412.06464).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune_mlx.convolution import convolved
from edgetune_mlx.in_pieces import Carried, Recurrence, decays

LEAST = 1e-6
"""Added to squared lengths of queries and keys."""


def mixed(
    mixer: GatedDelta,
    inputs: Sequence[mx.array],
    own: Mapping[str, mx.array],
    documents: mx.array | None,
) -> mx.array:
    """Return what is read (B, S, H V) of x (B, S, C), b and a (B, S, H)."""
    return mixed_in_tile(mixer, inputs, own, documents, None, 0)[0]


def mixed_in_tile(
    mixer: GatedDelta, inputs: Sequence[mx.array], own: Mapping[str, mx.array],
    documents: mx.array | None, state: mx.array | None, skipped: int,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """Return what is read of a tile, and the state (B, G, R, K, V) behind it for that before."""
    x, *beside = inputs
    return _recurrence(mixer).over(x, beside, tuple(own.values()), documents, state, skipped)


def mixed_after(
    mixer: GatedDelta,
    inputs: Sequence[mx.array],
    own: Mapping[str, mx.array],
    before: Carried | None,
) -> tuple[mx.array, Carried]:
    """Return the same of the next tokens of one document, and what its next ones need."""
    x, *beside = inputs
    return _recurrence(mixer).after(x, beside, tuple(own.values()), before)


def _recurrence(mixer: GatedDelta) -> Recurrence:
    """Return how states (G, R, K, V) go from piece to piece."""
    return Recurrence(partial(_rule, mixer=mixer), mixer.reach, mixer.state_size)


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
    pairs, start, end, through = decays(decay, None if numbers is None else numbers[:, kept - 1 :])
    corrected = beta * (v - start * (k @ state))
    system = mx.tril((k @ k.swapaxes(-1, -2)) * pairs * beta, -1)
    new = _solved(system, corrected)
    out = start * (q @ state) + ((q @ k.swapaxes(-1, -2)) * pairs) @ new
    behind = through * state + (k * end).swapaxes(-1, -2) @ new
    out = out.transpose(0, 3, 1, 2, 4).reshape(rows, count, mixer.values)
    return out.astype(window.dtype), behind


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
