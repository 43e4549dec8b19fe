"""Gated DeltaNet's mixer as the MLX engine writes it: in pieces of tokens, in float32.

B rows, S positions, H heads of values, G of keys, T tokens of a piece, K channels of a key, V of a
value, C channels that are convolved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from edgetune.memory.lazy.arrays import counted, matmul, summed_along
from edgetune.memory.lazy.convolution import convolved
from edgetune.memory.lazy.elementwise import (
    add,
    cast,
    exp,
    multiply,
    negative,
    plus,
    rsqrt,
    sigmoid,
    softplus,
    square,
    subtract,
    times,
    where,
)
from edgetune.memory.lazy.gradients import custom
from edgetune.memory.lazy.graph import Array, Grads, Wanted
from edgetune.memory.lazy.in_pieces import Recurrence, decays
from edgetune.memory.lazy.views import (
    broadcast,
    cut,
    expand,
    reshape,
    split,
    swapaxes,
    total,
    transpose,
)
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.storage import FLOAT32_BYTES


def mixed(
    mixer: GatedDelta, inputs: Sequence[Array], own: Mapping[str, Array], *, documents: bool
) -> Array:
    """Return what is read (B, S, H V) of x (B, S, C), b and a (B, S, H)."""
    return mixed_in_tile(mixer, inputs, own, None, 0, documents=documents)[0]


def mixed_in_tile(
    mixer: GatedDelta, inputs: Sequence[Array], own: Mapping[str, Array], state: Array | None,
    skipped: int, *, documents: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Return the same of a tile, and the state behind it for that before."""
    x, *beside = inputs
    rule = partial(_rule, mixer=mixer, documents=documents)
    return Recurrence(rule, mixer.taps - 1, mixer.values, mixer.state_size).over(
        x, beside, tuple(own.values()), state, skipped
    )


def _rule(
    window: Array, b: Array, a: Array, state: Array, conv: Array, a_log: Array, dt_bias: Array,
    *, mixer: GatedDelta, documents: bool,
) -> tuple[Array, Array]:  # fmt: skip
    kept, (rows, count, _) = mixer.taps - 1, b.shape
    y = convolved(cast(window, FLOAT32_BYTES), conv, None, documents=documents)
    y = cut(y, 1, kept, y.shape[1])
    y = multiply(y, sigmoid(y))
    q, k, v = split(y, (mixer.keys, mixer.keys, y.shape[-1] - 2 * mixer.keys))
    q = times(expand(_unit(q, mixer), 2))
    k = expand(_unit(k, mixer), 2)
    shared = mixer.value_heads // mixer.key_heads
    v = reshape(v, (rows, count, mixer.key_heads, shared, mixer.value_dim))
    v = transpose(v, (0, 2, 3, 1, 4))
    beta = _by_head(sigmoid(cast(b, FLOAT32_BYTES)), mixer)
    speed = negative(exp(cast(a_log, FLOAT32_BYTES)))
    rate = multiply(speed, softplus(add(cast(a, FLOAT32_BYTES), cast(dt_bias, FLOAT32_BYTES))))
    decay = summed_along(_by_head(rate, mixer), 3)
    pairs, start, end, through = decays(decay, documents=documents)
    corrected = multiply(beta, subtract(v, multiply(start, matmul(k, state))))
    system = _lower(multiply(multiply(matmul(k, swapaxes(k, -1, -2)), pairs), beta))
    new = _solved(system, corrected)
    out = add(
        multiply(start, matmul(q, state)),
        matmul(multiply(matmul(q, swapaxes(k, -1, -2)), pairs), new),
    )
    behind = add(multiply(through, state), matmul(swapaxes(multiply(k, end), -1, -2), new))
    out = reshape(transpose(out, (0, 3, 1, 2, 4)), (rows, count, mixer.values))
    return cast(out, window.width), behind


def _lower(x: Array) -> Array:
    """Return the triangle below the diagonal."""
    return where(counted(x.shape[-2:], 1), x)


def _solved(system: Array, right: Array) -> Array:
    """Return x of ``(1 + system) x = right``."""

    def back(primals: list[Array], grad: Array, solved: Array, wanted: Wanted) -> Grads:
        right_grad = matmul(swapaxes(_inverse(primals[0]), -1, -2), grad)
        product = matmul(negative(right_grad), swapaxes(solved, -1, -2))
        return [_lower(product) if wanted[0] else None, right_grad]

    return custom(lambda system, right: matmul(_inverse(system), right), back, system, right)


def _inverse(system: Array) -> Array:
    count, size = system.shape[-1], 1
    inverse = broadcast(counted((count, count)), system.shape)
    while size < count:
        quarter = counted((count, count), 1)
        inverse = subtract(inverse, matmul(matmul(inverse, where(quarter, system)), inverse))
        size *= 2
    return inverse


def _unit(x: Array, mixer: GatedDelta) -> Array:
    x = swapaxes(reshape(x, (*x.shape[:2], mixer.key_heads, mixer.key_dim)), 1, 2)
    return multiply(x, rsqrt(plus(total(square(x), (-1,)))))


def _by_head(x: Array, mixer: GatedDelta) -> Array:
    shared = mixer.value_heads // mixer.key_heads
    by_head = reshape(x, (*x.shape[:2], mixer.key_heads, shared))
    return expand(transpose(by_head, (0, 2, 3, 1)), 4)
