"""Products of the MLX engine with frozen and trained matrices, which keep nothing but inputs."""

from __future__ import annotations

from functools import partial

from edgetune.memory.lazy.arrays import counted, matmul
from edgetune.memory.lazy.elementwise import (
    add,
    cast,
    compared,
    mapped,
    multiply,
    sqrt,
    square,
    times,
    where,
)
from edgetune.memory.lazy.gradients import custom, recomputed
from edgetune.memory.lazy.graph import Array, Grads, Wanted
from edgetune.memory.lazy.matrices import Matrix
from edgetune.memory.lazy.views import cut, expand, flatten, one, reshape, stopped, swapaxes, total
from edgetune.storage import FLOAT32_BYTES


def frozen_linear(x: Array, matrix: Matrix, bias: Array | None) -> Array:
    """Return ``x W^T + bias`` for a frozen W; the way back needs only W."""

    def back(_: list[Array], grad: Array, __: Array, ___: Wanted) -> Grads:
        return [matrix.back(grad)]

    y = custom(matrix.times, back, x)
    return y if bias is None else add(y, cast(bias, x.width))


def low_rank(x: Array, a: Array, b: Array, *, drops: bool) -> Array:
    """Return the low-rank update of x, for A and B in float32."""
    return recomputed(partial(_low_rank, drops=drops), x, a, b)


def _low_rank(x: Array, a: Array, b: Array, *, drops: bool) -> Array:
    inputs = dropped(x) if drops else x
    low = matmul(inputs, cast(swapaxes(a, 0, 1), x.width))
    return times(matmul(low, cast(swapaxes(b, 0, 1), x.width)))


def half_fixed(x: Array, a: Array, b: Array, *, drops: bool) -> Array:
    """Return what :func:`low_rank` does for a constant A; keeps what A makes."""

    def down(x: Array) -> Array:
        return matmul(dropped(x) if drops else x, cast(swapaxes(a, 0, 1), x.width))

    def back(_: list[Array], grad: Array, __: Array, ___: Wanted) -> Grads:
        found = matmul(grad, cast(a, grad.width))
        return [dropped(found) if drops else found]

    def up(low: Array, b: Array) -> Array:
        return times(matmul(low, cast(swapaxes(b, 0, 1), low.width)))

    return recomputed(up, custom(down, back, x), b)


def row_norms(matrix: Matrix, a: Array, b: Array) -> Array:
    """Return the norms (N) of the rows of a matrix with its update, as constants."""
    a, b, dense = stopped(a), stopped(b), matrix.dense(FLOAT32_BYTES)
    cross = total(multiply(matmul(dense, swapaxes(a, 0, 1)), b), (1,), keep=False)
    own = total(multiply(matmul(b, matmul(a, swapaxes(a, 0, 1))), b), (1,), keep=False)
    squares = add(total(square(dense), (1,), keep=False), times(cross))
    return sqrt(times(add(squares, times(own))))


def dropped(x: Array) -> Array:
    """Return x with elements dropped and the rest scaled up."""
    return where(compared(counted(x.shape)), times(x))


def trained_linear(x: Array, weight: Array) -> Array:
    """Return ``x W^T`` for a trained W; keeps x and no converted copy of W."""
    return recomputed(lambda x, weight: matmul(x, swapaxes(cast(weight, x.width), 0, 1)), x, weight)


def add_bias(y: Array, bias: Array) -> Array:
    """Return ``y + bias`` for a trained bias, whose gradient is summed in float32."""

    def back(_: list[Array], grad: Array, __: Array, wanted: Wanted) -> Grads:
        wide = cast(flatten(grad, 0, -2), FLOAT32_BYTES) if wanted[1] else None
        return [grad, None if wide is None else total(wide, (0,), keep=False)]

    return custom(lambda y, bias: add(y, cast(bias, y.width)), back, y, bias)


def scaled_matrix(rows: Array, matrix: Array, columns: Array) -> Array:
    """Return a constant matrix (N, R) with its rows and columns multiplied by trained vectors."""
    return recomputed(
        lambda rows, columns: multiply(multiply(matrix, columns), expand(rows, 1)), rows, columns
    )


def fastfood(
    vector: Array, signs: Array, gaussian: Array, scale: Array, size: tuple[int, int]
) -> Array:
    """Return a random projection of a trained vector as a matrix."""

    def projected(vector: Array, scale: Array) -> Array:
        mixed = _transformed(_transformed(multiply(vector, signs)))  # and in another order
        results = multiply(_transformed(multiply(gaussian, mixed)), scale)
        return reshape(cut(flatten(results), 0, 0, size[0] * size[1]), size)

    return recomputed(projected, vector, scale)


def _transformed(x: Array) -> Array:
    """Return x times a constant matrix that takes no memory, or in another order."""
    return mapped(x, lambda _, grads, __: [_transformed(one(grads))])
