"""Several streams, of which blocks compute one (see :mod:`edgetune.altup`), and Gemma 3n's sparsity.

B rows, S positions, N streams of D numbers. What is kept for the way back is what came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import mlx.core as mx

from edgetune_mlx.linear import recomputed

LEAST = 1e-5
"""Mean squares below this count as this much."""
FLAT = 1e-30
"""The least variance: what does not vary at all, as of a token that is nothing, has a slope, too."""


def predicted(x: mx.array, routed: mx.array, router: mx.array, mixing: mx.array) -> mx.array:
    """Return streams x (B, S, N D) mixed by what a router (N, D) says of ``routed`` (B, S, D)."""
    return recomputed(_predicted)(x, routed, router, mixing)


def _predicted(x: mx.array, routed: mx.array, router: mx.array, mixing: mx.array) -> mx.array:
    count, size = router.shape
    made = _shares(routed, router) @ mixing.astype(mx.float32).T
    coefficients = made.astype(x.dtype).reshape(*x.shape[:-1], count, count)
    streams = x.reshape(*x.shape[:-1], count, size)
    return (streams + coefficients @ streams).reshape(x.shape)


def corrected(
    x: mx.array,
    made: mx.array,
    routed: mx.array,
    router: mx.array,
    weight: mx.array,
    *,
    active: int,
) -> mx.array:
    """Return streams x (B, S, N D) moved by how far ``made`` (B, S, D) is from the active one."""
    return recomputed(partial(_corrected, active=active))(x, made, routed, router, weight)


def _corrected(
    x: mx.array,
    made: mx.array,
    routed: mx.array,
    router: mx.array,
    weight: mx.array,
    *,
    active: int,
) -> mx.array:
    count, size = router.shape
    factors = (_shares(routed, router) @ weight.astype(mx.float32).T + 1).astype(x.dtype)
    streams = x.reshape(*x.shape[:-1], count, size)
    ahead = made[..., None, :] - streams[..., active : active + 1, :]
    return (streams + factors[..., None] * ahead).reshape(x.shape)


def added_behind(x: mx.array, y: mx.array) -> mx.array:
    """Return streams x (B, S, N D) with y (B, S, D) added to all but the first."""
    size = y.shape[-1]
    others = x[..., size:].reshape(*x.shape[:-1], -1, size) + y[..., None, :]
    return mx.concatenate([x[..., :size], others.reshape(*x.shape[:-1], -1)], axis=-1)


def above(x: mx.array, deviations: float) -> mx.array:
    """Return ``max(x - (mean + deviations std), 0)`` over the last axis."""
    return recomputed(partial(_above, deviations=deviations))(x)


def _above(x: mx.array, *, deviations: float) -> mx.array:
    wide = x.astype(mx.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    std = mx.sqrt(mx.maximum(mx.square(centred).mean(-1, keepdims=True), FLAT))
    over = centred - std * deviations
    return mx.where(over > 0, over, 0).astype(x.dtype)


def parted(x: mx.array, matrices: Sequence[mx.array]) -> mx.array:
    """Return x (..., D) and its projections, brought to its magnitude, side by side (..., N D)."""
    size = _magnitude(x.astype(mx.float32))
    others = [_as_large(x @ matrix.astype(x.dtype).T, size) for matrix in matrices]
    return mx.concatenate([x, *(other.astype(x.dtype) for other in others)], axis=-1)


def joined(x: mx.array, matrices: Sequence[mx.array]) -> mx.array:
    """Return the mean (..., D) of streams (..., N D), projected and brought to the first's magnitude."""
    return recomputed(partial(_joined, matrices=matrices))(x)


def _joined(x: mx.array, *, matrices: Sequence[mx.array]) -> mx.array:
    first, *others = mx.split(x, len(matrices) + 1, axis=-1)
    total = first.astype(mx.float32)
    size = _magnitude(total)
    for other, matrix in zip(others, matrices, strict=True):
        total = total + _as_large(other @ matrix.astype(x.dtype).T, size)
    return (total / (len(matrices) + 1)).astype(x.dtype)


def _as_large(x: mx.array, size: mx.array) -> mx.array:
    wide = x.astype(mx.float32)
    squares = mx.square(wide).mean(-1, keepdims=True)
    return wide * (size * mx.rsqrt(mx.maximum(squares, LEAST)))


def _magnitude(x: mx.array) -> mx.array:
    return mx.sqrt(mx.maximum(mx.square(x).mean(-1, keepdims=True), FLAT))


def _shares(routed: mx.array, router: mx.array) -> mx.array:
    """Return what the router says (B, S, N) of each token."""
    wide = routed.astype(mx.float32) @ router.astype(mx.float32).T
    return mx.tanh(wide / router.shape[1])
