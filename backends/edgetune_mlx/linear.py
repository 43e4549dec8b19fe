"""Products with frozen matrices, and functions that keep nothing but their inputs.

T tokens, K inputs, N outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import mlx.core as mx

from edgetune.network.ops import Dropout
from edgetune_mlx.matrices import Matrix

MOST_POSITIONS: Final = 2**20
"""Positions of a row that have keys of their own where elements are dropped."""


def recomputed(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Return ``function`` of arrays with a backward pass that starts from its inputs alone.

    ``mx.checkpoint`` keeps the output too, because it orders the second computation after the
    first one; here it comes after the output's gradient, which keeps nothing.
    """
    custom: Any = mx.custom_function(function)

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(primals: Any, cotangent: Any, _: Any) -> Any:
        inputs = list(primals) if isinstance(primals, Sequence) else [primals]
        later = mx.depends(inputs, [cotangent])
        grads = mx.vjp(function, later, [cotangent])[1]
        return tuple(grads) if isinstance(primals, Sequence) else grads[0]

    return custom  # type: ignore[no-any-return]


def frozen_linear(x: mx.array, matrix: Matrix, bias: mx.array | None) -> mx.array:
    """Return ``x W^T + bias`` (..., N) for a frozen W; the backward pass needs only W."""
    custom: Any = mx.custom_function(matrix.times)

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(_: Any, cotangent: mx.array, __: Any) -> mx.array:
        return matrix.back(cotangent)

    y: mx.array = custom(x)
    return y if bias is None else y + bias.astype(x.dtype)


def low_rank(
    x: mx.array, a: mx.array, b: mx.array, scale: float, dropout: Dropout | None
) -> mx.array:
    """Return ``scale * dropout(x) A^T B^T`` (..., N) in the type of x, for float32 A and B."""
    return recomputed(partial(_low_rank, scale=scale, dropout=dropout))(x, a, b)


def _low_rank(
    x: mx.array, a: mx.array, b: mx.array, *, scale: float, dropout: Dropout | None
) -> mx.array:
    # a float32 factor would promote everything behind it
    inputs = x if dropout is None else dropped(x, dropout)
    return scale * (inputs @ a.T.astype(x.dtype) @ b.T.astype(x.dtype))


def half_fixed(
    x: mx.array, a: mx.array, b: mx.array, scale: float, dropout: Dropout | None
) -> mx.array:
    """Return what :func:`low_rank` does for a constant A; keeps ``dropout(x) A^T`` (..., R)."""

    def down(x: mx.array) -> mx.array:
        return (x if dropout is None else dropped(x, dropout)) @ a.T.astype(x.dtype)

    custom: Any = mx.custom_function(down)

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(_: Any, cotangent: mx.array, __: Any) -> mx.array:
        grad = cotangent @ a.astype(cotangent.dtype)
        return grad if dropout is None else dropped(grad, dropout)

    def up(low: mx.array, b: mx.array) -> mx.array:
        return scale * (low @ b.T.astype(low.dtype))

    return recomputed(up)(custom(x), b)


def row_norms(matrix: Matrix, a: mx.array, b: mx.array, scale: float) -> mx.array:
    """Return the norms (N) of the rows of ``W + scale * B A`` without forming ``B A``.

    ``|W|^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>`` by row, as constants.
    """
    a, b, dense = mx.stop_gradient(a), mx.stop_gradient(b), matrix.dense(mx.float32)
    cross = ((dense @ a.T) * b).sum(1)
    own = ((b @ (a @ a.T)) * b).sum(1)
    squares = dense.square().sum(1) + 2 * scale * cross + scale**2 * own
    return mx.sqrt(mx.maximum(squares, 0))


def dropped(x: mx.array, dropout: Dropout) -> mx.array:
    """Return x (B, S, K) with elements dropped and the rest scaled up."""
    return mx.where(kept(dropout, x.shape), x * (1 / (1 - dropout.fraction)), 0)


def kept(dropout: Dropout, size: Sequence[int]) -> mx.array:
    """Return which elements of an array (B, S, K) are kept.

    Each token has a key of its own, so that its elements do not depend on which others are computed
    with it.
    """
    rows, positions, columns = size
    high, low = divmod(dropout.seed, 2**32)
    at = mx.arange(dropout.start, dropout.start + positions, dtype=mx.uint32)
    tokens = mx.arange(rows, dtype=mx.uint32)[:, None] * MOST_POSITIONS + at
    tokens = tokens.flatten() ^ mx.array(low, mx.uint32)
    keys = mx.stack([mx.full(tokens.shape, high, mx.uint32), tokens], axis=-1)
    share = 1 - dropout.fraction
    drawn = mx.vmap(lambda key: mx.random.bernoulli(share, (columns,), key=key))(keys)
    return drawn.reshape(*size)
