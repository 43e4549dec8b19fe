"""Several streams (AltUp), and a sparse gate, as the MLX engine writes them.

B rows, S positions, N streams of D numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from edgetune.memory.lazy.arrays import matmul, mean
from edgetune.memory.lazy.elementwise import (
    add,
    cast,
    compared,
    multiply,
    plus,
    rsqrt,
    sqrt,
    square,
    subtract,
    tanh,
    times,
    where,
)
from edgetune.memory.lazy.gradients import recomputed
from edgetune.memory.lazy.graph import Array
from edgetune.memory.lazy.views import concatenate, cut, expand, reshape, split, swapaxes
from edgetune.storage import FLOAT32_BYTES


def predicted(x: Array, routed: Array, router: Array, mixing: Array) -> Array:
    """Return streams x (B, S, N D) mixed by what a router says of ``routed`` (B, S, D)."""
    return recomputed(_predicted, x, routed, router, mixing)


def _predicted(x: Array, routed: Array, router: Array, mixing: Array) -> Array:
    count, size = router.shape
    made = matmul(_shares(routed, router), swapaxes(cast(mixing, FLOAT32_BYTES), 0, 1))
    coefficients = reshape(cast(made, x.width), (*x.shape[:-1], count, count))
    streams = reshape(x, (*x.shape[:-1], count, size))
    return reshape(add(streams, matmul(coefficients, streams)), x.shape)


def corrected(
    x: Array, made: Array, routed: Array, router: Array, weight: Array, *, active: int
) -> Array:
    """Return streams x (B, S, N D) moved by how far ``made`` (B, S, D) is from the active one."""
    return recomputed(partial(_corrected, active=active), x, made, routed, router, weight)


def _corrected(
    x: Array, made: Array, routed: Array, router: Array, weight: Array, *, active: int
) -> Array:
    count, size = router.shape
    shares = matmul(_shares(routed, router), swapaxes(cast(weight, FLOAT32_BYTES), 0, 1))
    factors = cast(plus(shares), x.width)
    streams = reshape(x, (*x.shape[:-1], count, size))
    ahead = subtract(expand(made, 2), cut(streams, 2, active, active + 1))
    return reshape(add(streams, multiply(expand(factors, 3), ahead)), x.shape)


def added_behind(x: Array, y: Array) -> Array:
    """Return streams x (B, S, N D) with y (B, S, D) added to all but the first."""
    whole, size = x.shape[-1], y.shape[-1]
    behind = reshape(cut(x, -1, size, whole), (*x.shape[:-1], whole // size - 1, size))
    others = reshape(add(behind, expand(y, 2)), (*x.shape[:-1], whole - size))
    return concatenate([cut(x, -1, 0, size), others], -1)


def above(x: Array) -> Array:
    """Return what of x (B, S, F) is far above its mean."""
    return recomputed(_above, x)


def _above(x: Array) -> Array:
    wide = cast(x, FLOAT32_BYTES)
    centred = subtract(wide, mean(wide))
    over = subtract(centred, times(sqrt(times(mean(square(centred))))))
    return cast(where(compared(over), over), x.width)


def joined(x: Array, matrices: Sequence[Array]) -> Array:
    """Return the mean (..., D) of streams (..., N D), projected and brought to the first's magnitude."""
    return recomputed(partial(_joined, matrices=matrices), x)


def _joined(x: Array, *, matrices: Sequence[Array]) -> Array:
    count = len(matrices) + 1
    first, *others = split(x, [x.shape[-1] // count] * count)
    summed = cast(first, FLOAT32_BYTES)
    size = sqrt(times(mean(square(summed))))
    for other, matrix in zip(others, matrices, strict=True):
        projected = matmul(other, swapaxes(cast(matrix, x.width), 0, 1))
        summed = add(summed, _as_large(projected, size))
    return cast(times(summed), x.width)


def _as_large(x: Array, size: Array) -> Array:
    wide = cast(x, FLOAT32_BYTES)
    return multiply(wide, multiply(size, rsqrt(times(mean(square(wide))))))


def _shares(routed: Array, router: Array) -> Array:
    wide = matmul(cast(routed, FLOAT32_BYTES), swapaxes(cast(router, FLOAT32_BYTES), 0, 1))
    return tanh(times(wide))
