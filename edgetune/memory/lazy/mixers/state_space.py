"""Mamba-2's mixer as the MLX engine writes it: in pieces of tokens, in float32.

B rows, S positions, H heads, G groups of R heads, T tokens of a piece, K channels of a key, V of a
value, C channels that are convolved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf

from edgetune.memory.lazy.arrays import counted, matmul, summed_along
from edgetune.memory.lazy.convolution import convolved
from edgetune.memory.lazy.elementwise import (
    add,
    cast,
    exp,
    multiply,
    negative,
    sigmoid,
    softplus,
    times,
)
from edgetune.memory.lazy.graph import Array
from edgetune.memory.lazy.in_pieces import Recurrence, decays
from edgetune.memory.lazy.views import cut, expand, reshape, split, swapaxes, transpose
from edgetune.network.mixers.state_space import StateSpace
from edgetune.storage import FLOAT32_BYTES


def mixed(
    mixer: StateSpace, inputs: Sequence[Array], own: Mapping[str, Array], *, documents: bool
) -> Array:
    """Return what is read (B, S, H V) of x (B, S, C) and steps (B, S, H)."""
    return mixed_in_tile(mixer, inputs, own, None, 0, documents=documents)[0]


def mixed_in_tile(
    mixer: StateSpace, inputs: Sequence[Array], own: Mapping[str, Array], state: Array | None,
    skipped: int, *, documents: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Return the same of a tile, and the state behind it for that before."""
    x, *beside = inputs
    rule = partial(_rule, mixer=mixer, documents=documents)
    return Recurrence(rule, mixer.taps - 1, mixer.values, mixer.state_size).over(
        x, beside, tuple(own.values()), state, skipped
    )


def _rule(
    window: Array, steps: Array, state: Array, conv: Array, *own: Array, mixer: StateSpace,
    documents: bool,
) -> tuple[Array, Array]:  # fmt: skip
    kept, (rows, count, _) = mixer.taps - 1, steps.shape
    *bias, a_log, dt_bias, skip = own
    wide, steps = cast(window, FLOAT32_BYTES), cast(steps, FLOAT32_BYTES)
    if mixer.multipliers:
        each = counted((mixer.channels, 1, 1))
        conv, steps = multiply(cast(conv, FLOAT32_BYTES), each), times(steps)
    y = convolved(wide, conv, bias[0] if bias else None, documents=documents)
    y = cut(y, 1, kept, y.shape[1])
    y = multiply(y, sigmoid(y))
    values, k, q = split(y, (mixer.values, mixer.keys, mixer.keys))
    q, k = (_by_group(each, mixer) for each in (q, k))
    shared = mixer.heads // mixer.groups
    values = reshape(values, (rows, count, mixer.groups, shared, mixer.value_dim))
    values = transpose(values, (0, 2, 3, 1, 4))
    raw = add(steps, cast(dt_bias, FLOAT32_BYTES))
    step = _by_head(_limited(raw, mixer), mixer)
    of_heads = (mixer.groups, shared, 1, 1)
    speed = reshape(negative(exp(cast(a_log, FLOAT32_BYTES))), of_heads)
    decay = summed_along(multiply(step, speed), 3)
    pairs, start, end, through = decays(decay, documents=documents)
    new = multiply(values, step)
    scores = multiply(matmul(q, swapaxes(k, -1, -2)), pairs)
    out = add(multiply(start, matmul(q, state)), matmul(scores, new))
    out = add(out, multiply(values, reshape(cast(skip, FLOAT32_BYTES), of_heads)))
    added = matmul(swapaxes(k, -1, -2), multiply(new, end))
    behind = add(multiply(through, state), added)
    out = reshape(transpose(out, (0, 3, 1, 2, 4)), (rows, count, mixer.values))
    return cast(out, window.width), behind


def _limited(x: Array, mixer: StateSpace) -> Array:
    steps = softplus(x)
    if mixer.least_step > 0:
        steps = times(steps)
    return steps if mixer.most_step == inf else times(steps)


def _by_group(x: Array, mixer: StateSpace) -> Array:
    by_group = reshape(x, (*x.shape[:2], mixer.groups, mixer.key_dim))
    return expand(swapaxes(by_group, 1, 2), 2)


def _by_head(x: Array, mixer: StateSpace) -> Array:
    by_group = reshape(x, (*x.shape[:2], mixer.groups, mixer.heads // mixer.groups))
    return expand(transpose(by_group, (0, 2, 3, 1)), 4)
