"""Operations that make new arrays: products, sums along an axis, what is chosen by number."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from edgetune.memory.lazy.elementwise import cast, multiply, subtract, times
from edgetune.memory.lazy.graph import Array, Grads, Operation, Shape, Wanted, given
from edgetune.memory.lazy.views import (
    broadcast,
    broadcast_shape,
    flatten,
    one,
    reshape,
    swapaxes,
    total,
    updated,
    zeros,
)
from edgetune.storage import FLOAT32_BYTES


def made_of(inputs: Sequence[Array], shape: Shape, width: int) -> Array:
    """Return an array that stands for what many operations make of others."""
    return Array(shape, width, Operation(tuple(inputs), nbytes=prod(shape) * width))


def counted(shape: Shape, width: int = FLOAT32_BYTES) -> Array:
    """Return what is made of nothing: numbers in a row, random bits."""
    return Array(shape, width, Operation((), nbytes=prod(shape) * width))


def matmul(x: Array, y: Array) -> Array:
    """Return ``x y``; operands that lie otherwise than as rows or columns are copied."""
    kind = max(x.width, y.width)
    x, y = cast(x, kind), cast(y, kind)
    shape = x.shape[:-1]
    flat = len(x.shape) > 2 and len(y.shape) == 2
    if flat:
        x = flatten(x, 0, -2)
    elif len(x.shape) > 2:
        batch = broadcast_shape(x.shape[:-2], y.shape[:-2])
        x, y = (broadcast(each, (*batch, *each.shape[-2:])) for each in (x, y))

    def back(o: Operation, grads: Grads, wanted: Wanted) -> Grads:
        grad, (first, second) = one(grads), o.inputs
        return [
            matmul(grad, swapaxes(second, -1, -2)) if wanted[0] else None,
            matmul(swapaxes(first, -1, -2), grad) if wanted[1] else None,
        ]

    out = (*x.shape[:-1], y.shape[-1])
    spare = sum(each.nbytes for each in (x, y) if not _multiplied(each))
    made = Array(out, kind, Operation((x, y), back=back, nbytes=prod(out) * kind, spare=spare))
    return reshape(made, (*shape, out[-1])) if flat else made


def _multiplied(x: Array) -> bool:
    (rows, columns), (down, along) = x.shape[-2:], x.strides[-2:]
    return (down == columns and along == 1) or (down == 1 and along == rows)


def mean(x: Array) -> Array:
    """Return the mean over the last axis, which stays."""
    return times(total(x, (-1,)))


def reduced(x: Array, width: int | None = None) -> Array:
    """Return something about the last axis, without a gradient: the place of the highest number."""
    shape = (*x.shape[:-1], 1)
    width = x.width if width is None else width
    return Array(shape, width, Operation((x,), nbytes=prod(shape) * width))


def softmax(x: Array) -> Array:
    """Return the softmax over the last axis."""

    def back(o: Operation, grads: Grads, __: Wanted) -> Grads:
        value = o.outputs[0]
        part = multiply(value, one(grads))
        return [subtract(part, multiply(value, total(part, (-1,))))]

    along = x.dense and x.strides[-1] == 1
    nbytes = (x.size if along else x.numbers) * x.width
    operation = Operation((x,), back=back, nbytes=nbytes, donors=(0,) if along else ())
    return Array(x.shape, x.width, operation, x if along else None)


def gathered(x: Array, rows: Array, shape: Shape) -> Array:
    """Return rows of x by their numbers."""

    def back(_: Operation, grads: Grads, __: Wanted) -> Grads:
        return [updated(zeros(x.shape, x.width), one(grads)), None]

    return Array(shape, x.width, Operation((x, rows), back=back, nbytes=prod(shape) * x.width))


def sorted_places(x: Array) -> Array:
    """Return the places of the numbers of x in order."""
    return Array(x.shape, FLOAT32_BYTES, Operation((x,), nbytes=x.numbers * FLOAT32_BYTES))


def summed_along(x: Array, axis: int) -> Array:
    """Return the sums of all numbers up to each along an axis."""
    spare = 0 if x.rows else x.nbytes
    operation = Operation(
        (x,), nbytes=x.nbytes, spare=spare,
        back=lambda _, grads, __: [summed_along(one(grads), axis)],
    )  # fmt: skip
    return Array(x.shape, x.width, operation)


def into_sum(grad: Array) -> Array:
    """Return the sum of a gradient and what there is of it, whose place it takes."""
    there = given(grad.shape, grad.width)
    return Array(grad.shape, grad.width, Operation((there, grad), views=(0,)))
