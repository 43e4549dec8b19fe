"""Trained biases and matrices.

K inputs, N outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from edgetune_mlx.linear import recomputed


def add_bias(y: mx.array, bias: mx.array) -> mx.array:
    """Return ``y + bias`` for a trained bias (N), whose gradient is summed in float32."""
    custom: Any = mx.custom_function(lambda y, bias: y + bias.astype(y.dtype))

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(_: Any, grad: mx.array, __: Any) -> tuple[mx.array, mx.array]:
        return grad, grad.flatten(0, -2).astype(mx.float32).sum(0)

    out: mx.array = custom(y, bias)
    return out


def trained_linear(x: mx.array, weight: mx.array) -> mx.array:
    """Return ``x W^T`` for a trained float32 W (N, K); keeps x and no converted copy of W."""
    return recomputed(lambda x, weight: x @ weight.astype(x.dtype).T)(x, weight)


def scaled_matrix(rows: mx.array, matrix: mx.array, columns: mx.array) -> mx.array:
    """Return a constant matrix (N, R) with its rows and columns multiplied by trained vectors."""
    return recomputed(lambda rows, columns: matrix * columns * rows[:, None])(rows, columns)


def fastfood(
    vector: mx.array, signs: mx.array, order: mx.array, gaussian: mx.array, scale: mx.array,
    size: tuple[int, int],
) -> mx.array:  # fmt: skip
    """Return a Fastfood projection (Le et al. 2013) of a trained vector as a matrix."""

    def projected(vector: mx.array, scale: mx.array) -> mx.array:
        at = order.astype(mx.int32)  # made again on the way back, not kept for each matrix
        mixed = mx.hadamard_transform(vector * signs, scale=1.0)[at]
        results = mx.hadamard_transform(gaussian * mixed, scale=1.0) * scale
        return results.flatten()[: size[0] * size[1]].reshape(size)

    return recomputed(projected)(vector, scale)
