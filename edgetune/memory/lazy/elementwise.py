"""Functions of each number of arrays: an array that nobody else needs gives its place.

Numbers that are no arrays, like a scale, take no memory and count as a task.
"""

from __future__ import annotations

from math import prod

from edgetune.memory.lazy.graph import Array, Back, Grads, Operation, Wanted
from edgetune.memory.lazy.views import broadcast, broadcast_shape, one, passed

BOOL_BYTES = 1


def _alone(x: Array, back: Back | None, width: int | None = None, tasks: int = 2) -> Array:
    """Return a function of each number of x, which may take its place."""
    width = x.width if width is None else width
    size = x.size if x.dense else x.numbers
    operation = Operation(
        (x,), back=back, nbytes=size * width, donors=(0,) if x.dense else (), tasks=tasks
    )
    return Array(x.shape, width, operation, x if x.dense else None)


def mapped(x: Array, back: Back | None = None) -> Array:
    """Return some function of each number of x."""
    return _alone(x, back)


def negative(x: Array) -> Array:
    """Return ``-x``."""
    return _alone(x, lambda _, grads, __: [negative(one(grads))])


def times(x: Array, factor: float = 2.0) -> Array:
    """Return x times a number."""
    return _alone(x, lambda _, grads, __: [times(one(grads), factor)], tasks=3)


def plus(x: Array) -> Array:
    """Return x and a number added up."""
    return _alone(x, passed, tasks=3)


def minus_from(x: Array) -> Array:
    """Return a number minus x."""
    return _alone(x, lambda _, grads, __: [negative(one(grads))], tasks=3)


def square(x: Array) -> Array:
    """Return ``x^2``."""
    return _alone(x, lambda _, grads, __: [multiply(x, times(one(grads)))])


def exp(x: Array) -> Array:
    """Return ``e^x``."""
    return _alone(x, lambda o, grads, __: [multiply(one(grads), o.outputs[0])])


def sigmoid(x: Array) -> Array:
    """Return the sigmoid of x."""

    def back(o: Operation, grads: Grads, __: Wanted) -> Grads:
        value = o.outputs[0]
        return [multiply(one(grads), multiply(value, minus_from(value)))]

    return _alone(x, back)


def rsqrt(x: Array) -> Array:
    """Return ``1 / sqrt(x)``."""

    def back(o: Operation, grads: Grads, __: Wanted) -> Grads:
        return [multiply(times(one(grads)), divide(o.outputs[0], x))]

    return _alone(x, back)


def sqrt(x: Array) -> Array:
    """Return the square root of x."""
    return _alone(x, lambda o, grads, __: [divide(times(one(grads)), o.outputs[0])])


def tanh(x: Array) -> Array:
    """Return tanh of x."""

    def back(_: Operation, grads: Grads, __: Wanted) -> Grads:
        return [divide(one(grads), square(mapped(x)))]

    return _alone(x, back)


def cast(x: Array, width: int) -> Array:
    """Return x in numbers of another width; itself if it has that."""
    return x if x.width == width else converted(x, width)


def converted(x: Array, width: int) -> Array:
    """Return x in another type."""
    return _alone(x, lambda _, grads, __: [cast(one(grads), x.width)], width)


def _both(x: Array, y: Array, back: Back | None, width: int | None = None) -> Array:
    """Return a function of pairs of numbers, of shapes that go together."""
    shape = broadcast_shape(x.shape, y.shape)
    kind = max(x.width, y.width)
    x, y = broadcast(cast(x, kind), shape), broadcast(cast(y, kind), shape)
    width = kind if width is None else width
    layout: Array | None = None
    donors: tuple[int, ...] = ()
    if x.size == 1 and y.dense:
        layout, donors = y, (1,)
    elif y.size == 1 and x.dense:
        layout, donors = x, (0,)
    elif (x.rows and y.rows) or (x.columns and y.columns):
        layout, donors = x, (0, 1)
    else:
        donors = tuple(i for i, each in enumerate((x, y)) if each.rows)
    size = prod(shape) if layout is None else layout.size
    return Array(
        shape, width, Operation((x, y), back=back, nbytes=size * width, donors=donors), layout
    )


def add(x: Array, y: Array) -> Array:
    """Return ``x + y``."""
    return _both(x, y, lambda _, grads, __: [grads[0], grads[0]])


def subtract(x: Array, y: Array) -> Array:
    """Return ``x - y``."""

    def back(_: Operation, grads: Grads, wanted: Wanted) -> Grads:
        return [grads[0], negative(one(grads)) if wanted[1] else None]

    return _both(x, y, back)


def multiply(x: Array, y: Array) -> Array:
    """Return ``x y``."""

    def back(o: Operation, grads: Grads, wanted: Wanted) -> Grads:
        grad, (first, second) = one(grads), o.inputs
        return [
            multiply(second, grad) if wanted[0] else None,
            multiply(first, grad) if wanted[1] else None,
        ]

    return _both(x, y, back)


def divide(x: Array, y: Array) -> Array:
    """Return ``x / y``."""

    def back(o: Operation, grads: Grads, wanted: Wanted) -> Grads:
        grad, (first, second) = one(grads), o.inputs
        return [
            divide(grad, second) if wanted[0] else None,
            negative(divide(multiply(grad, first), square(second))) if wanted[1] else None,
        ]

    return _both(x, y, back)


def compared(x: Array, y: Array | None = None) -> Array:
    """Return which numbers are in a relation, to those of y or to one number."""
    if y is None:
        return _alone(x, None, BOOL_BYTES, tasks=3)
    return _both(x, y, None, BOOL_BYTES)


def where(mask: Array, x: Array, y: Array | None = None) -> Array:
    """Return x where the mask says so, elsewhere y, or a number if there is none."""

    def back(o: Operation, grads: Grads, wanted: Wanted) -> Grads:
        grad, seen = one(grads), o.inputs[0]
        first = multiply(cast(seen, grad.width), grad) if wanted[1] else None
        if len(o.inputs) == 2:
            return [None, first]
        hidden = cast(mapped(seen), grad.width) if wanted[2] else None
        return [None, first, None if hidden is None else multiply(hidden, grad)]

    shape = broadcast_shape(mask.shape, x.shape)
    if y is not None:
        shape = broadcast_shape(shape, y.shape)
    inputs = [broadcast(each, shape) for each in (mask, x, y) if each is not None]
    donors = tuple(i for i, each in enumerate(inputs) if each.rows)
    operation = Operation(
        inputs, back=back, nbytes=prod(shape) * x.width, donors=donors, tasks=3 - (y is not None)
    )
    return Array(shape, x.width, operation)


def softplus(x: Array) -> Array:
    """Return ``log(1 + e^x)``."""
    return _alone(x, lambda _, grads, __: [multiply(one(grads), sigmoid(plus(x)))], tasks=3)
