"""Mamba-2's mixer between its projections: a convolution, and a recurrence over what it makes.

In float32, rounded once. B rows, S positions, H heads, G groups of R heads, T tokens of a piece, K
channels of a key, V of a value, C = H V + 2 G K channels that are convolved. The formulas are
derived in Dao & Gu 2024 (2405.21060).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf

import mlx.core as mx

from edgetune.network.mixers.state_space import StateSpace
from edgetune_mlx.convolution import convolved
from edgetune_mlx.in_pieces import Carried, Recurrence, decays


def mixed(
    mixer: StateSpace,
    inputs: Sequence[mx.array],
    own: Mapping[str, mx.array],
    documents: mx.array | None,
) -> mx.array:
    """Return what is read (B, S, H V) of x (B, S, C) and steps (B, S, H)."""
    return mixed_in_tile(mixer, inputs, own, documents, None, 0)[0]


def mixed_in_tile(
    mixer: StateSpace, inputs: Sequence[mx.array], own: Mapping[str, mx.array],
    documents: mx.array | None, state: mx.array | None, skipped: int,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """Return what is read of a tile, and the state (B, G, R, K, V) behind it for that before."""
    x, *beside = inputs
    return _recurrence(mixer).over(x, beside, tuple(own.values()), documents, state, skipped)


def mixed_after(
    mixer: StateSpace,
    inputs: Sequence[mx.array],
    own: Mapping[str, mx.array],
    before: Carried | None,
) -> tuple[mx.array, Carried]:
    """Return the same of the next tokens of one document, and what its next ones need."""
    x, *beside = inputs
    return _recurrence(mixer).after(x, beside, tuple(own.values()), before)


def _recurrence(mixer: StateSpace) -> Recurrence:
    """Return how states (G, R, K, V) go from piece to piece."""
    return Recurrence(partial(_rule, mixer=mixer), mixer.reach, mixer.state_size)


def _rule(
    window: mx.array, steps: mx.array, state: mx.array, conv: mx.array, *own: mx.array,
    mixer: StateSpace, numbers: mx.array | None,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """Return what is read (B, T, H V) of a window (B, taps - 1 + T, C), and the state behind it."""
    kept, (rows, count, _) = mixer.taps - 1, steps.shape
    *bias, a_log, dt_bias, skip = own
    steps = steps.astype(mx.float32)
    if mixer.multipliers:
        conv, steps = conv.astype(mx.float32) * _channels(mixer), steps * mixer.multipliers[-1]
    y = convolved(window.astype(mx.float32), conv, bias[0] if bias else None, numbers)[:, kept:]
    y = y * mx.sigmoid(y)
    values, k, q = mx.split(y, [mixer.values, mixer.values + mixer.keys], axis=-1)
    q, k = (_by_group(each, mixer) for each in (q, k))  # (B, G, 1, T, K)
    values = values.reshape(rows, count, mixer.groups, -1, mixer.value_dim).transpose(0, 2, 3, 1, 4)
    step = _by_head(_limited(steps + dt_bias.astype(mx.float32), mixer), mixer)
    speed = -mx.exp(a_log.astype(mx.float32)).reshape(mixer.groups, -1, 1, 1)
    decay = mx.cumsum(step * speed, axis=3)
    pairs, start, end, through = decays(
        decay, None if numbers is None else numbers[:, kept - 1 :]
    )  # fmt: skip
    new = values * step
    out = start * (q @ state) + ((q @ k.swapaxes(-1, -2)) * pairs) @ new
    out = out + values * skip.astype(mx.float32).reshape(mixer.groups, -1, 1, 1)
    behind = through * state + k.swapaxes(-1, -2) @ (new * end)
    out = out.transpose(0, 3, 1, 2, 4).reshape(rows, count, mixer.values)
    return out.astype(window.dtype), behind


def _channels(mixer: StateSpace) -> mx.array:
    """Return what each channel is multiplied by before it is convolved (C, 1, 1)."""
    parts = [mx.full((count, 1, 1), factor) for factor, count in mixer.channel_multipliers]
    return mx.concatenate(parts)


def _limited(x: mx.array, mixer: StateSpace) -> mx.array:
    """Return the softplus of x, within the limits of a step."""
    steps = mx.logaddexp(x, 0)
    if mixer.least_step > 0:
        steps = mx.maximum(steps, mixer.least_step)
    return steps if mixer.most_step == inf else mx.minimum(steps, mixer.most_step)


def _by_group(x: mx.array, mixer: StateSpace) -> mx.array:
    """Return x (B, T, G K) as (B, G, 1, T, K)."""
    return x.reshape(*x.shape[:2], mixer.groups, -1).swapaxes(1, 2)[:, :, None]


def _by_head(x: mx.array, mixer: StateSpace) -> mx.array:
    """Return x (B, T, H) as (B, G, R, T, 1)."""
    by_group = x.reshape(*x.shape[:2], mixer.groups, -1)
    return by_group.transpose(0, 2, 3, 1)[..., None]
