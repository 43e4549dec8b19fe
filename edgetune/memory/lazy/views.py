"""Views of arrays, and what puts parts of arrays together: each is the way back of another.

They are named and put together as MLX's are (``ops.cpp``, ``primitives.cpp`` of MLX 0.32), because
memory follows from which operations there are, and in which order they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

from edgetune.memory.lazy.graph import (
    Array,
    Back,
    Grads,
    Operation,
    Shape,
    Wanted,
    spanned,
    unrepeated,
)
from edgetune.storage import FLOAT32_BYTES


def _view(x: Array, back: Back | None, shape: Shape, *others: Array) -> Array:
    return Array(shape, x.width, Operation((x, *others), back=back, views=(0,)), x)


def copied(x: Array) -> Array:
    """Return x under another name."""
    return _view(x, passed, x.shape)


def stopped(x: Array) -> Array:
    """Return x, beyond which no gradient goes."""
    return _view(x, None, x.shape)


def transpose(x: Array, axes: Sequence[int]) -> Array:
    """Return x with its axes in another order."""

    def back(_: Operation, grads: Grads, __: Wanted) -> Grads:
        inverse = [0] * len(axes)
        for to, axis in enumerate(axes):
            inverse[axis] = to
        return [transpose(one(grads), inverse)]

    out = _view(x, back, tuple(x.shape[axis] for axis in axes))
    return out.lies(tuple(x.strides[axis] for axis in axes), x.size, dense=x.dense)


def swapaxes(x: Array, one: int, other: int) -> Array:
    """Return x with two axes exchanged."""
    axes = list(range(len(x.shape)))
    axes[one], axes[other] = axes[other], axes[one]
    return transpose(x, axes)


def expand(x: Array, *axes: int) -> Array:
    """Return x with axes of size 1 at these places, in rising order."""
    shape, strides = list(x.shape), list(x.strides)
    for axis in axes:
        shape.insert(axis, 1)
        strides.insert(axis, 1)
    out = _view(x, lambda _, grads, __: [squeeze(one(grads), *axes)], tuple(shape))
    return _laid(out, strides)


def squeeze(x: Array, *axes: int) -> Array:
    """Return x without axes of size 1."""
    if not axes:
        return x
    keep = [axis for axis in range(len(x.shape)) if axis not in axes]
    shape, strides = (tuple(own[axis] for axis in keep) for own in (x.shape, x.strides))
    out = _view(x, lambda _, grads, __: [expand(one(grads), *axes)], shape)
    return _laid(out, strides)


def _laid(out: Array, strides: Sequence[int]) -> Array:
    """Lay a view out whose axes of size 1 alone differ."""
    out.strides = tuple(strides)
    return out


def broadcast(x: Array, shape: Shape) -> Array:
    """Return x repeated along axes of size 1 and in front."""
    if x.shape == shape:
        return x
    before = len(shape) - len(x.shape)
    strides = [0] * before + [
        0 if size == 1 else stride for size, stride in zip(x.shape, x.strides, strict=True)
    ]
    axes = [
        axis for axis in range(len(shape)) if axis < before or x.shape[axis - before] != shape[axis]
    ]

    def back(_: Operation, grads: Grads, __: Wanted) -> Grads:
        return [squeeze(total(one(grads), axes), *range(before))]

    out = _view(x, back, shape)
    out.strides = tuple(strides)
    if prod(shape) > x.numbers:
        out.rows = out.columns = False
    return out


def cut(x: Array, axis: int, start: int, stop: int, step: int = 1) -> Array:
    """Return a slice along one axis."""
    axis %= len(x.shape)
    if (start, stop, step) == (0, x.shape[axis], 1):
        return x
    size = len(range(start, stop, step))
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    strides = (*x.strides[:axis], x.strides[axis] * step, *x.strides[axis + 1 :])

    def back(_: Operation, grads: Grads, __: Wanted) -> Grads:
        return [updated(zeros(x.shape, x.width), one(grads))]

    span = spanned(shape, strides)
    return _view(x, back, shape).lies(strides, span, dense=unrepeated(shape, strides) == span)


def split(x: Array, sizes: Sequence[int], axis: int = -1) -> list[Array]:
    """Return parts along an axis."""
    axis %= len(x.shape)

    def back(operation: Operation, grads: Grads, __: Wanted) -> Grads:
        each = zip(grads, operation.outputs, strict=True)
        return [concatenate([zeros(o.shape, o.width) if g is None else g for g, o in each], axis)]

    operation = Operation((x,), back=back, views=(0,) * len(sizes))
    for size in sizes:
        part = Array((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.width, operation)
        count = unrepeated(part.shape, x.strides)
        part.lies(x.strides, count, dense=x.dense)
        if count not in (1, x.size):
            part.dense = x.dense and (part.rows or part.columns)
    return operation.outputs


def depends(arrays: Sequence[Array], others: Sequence[Array]) -> list[Array]:
    """Return the arrays, not there before others are."""
    count = len(arrays)

    def back(operation: Operation, grads: Grads, __: Wanted) -> Grads:
        none = [None] * (len(operation.inputs) - count)
        return [*grads, *none]

    operation = Operation((*arrays, *others), back=back, views=range(count))
    for x in arrays:
        Array(x.shape, x.width, operation, x)
    return operation.outputs


def reshape(x: Array, shape: Shape) -> Array:
    """Return x in another shape, a copy if its numbers do not lie for it."""
    if shape == x.shape:
        return x

    def back(_: Operation, grads: Grads, __: Wanted) -> Grads:
        return [reshape(one(grads), x.shape)]

    if x.rows:
        out = Array(shape, x.width, Operation((x,), back=back, views=(0,)))
        out.size = x.size
        out.dense = x.dense
        return out
    strides = _reshaped(x, shape)
    if strides is None:
        return Array(shape, x.width, Operation((x,), back=back, nbytes=x.nbytes))
    out = _view(x, back, shape)
    out.strides = strides
    return out


def contiguous(x: Array) -> Array:
    """Return x with its numbers in order, a copy if they lie otherwise."""
    if x.rows:
        return copied(x)
    return Array(x.shape, x.width, Operation((x,), back=passed, nbytes=x.nbytes))


def flatten(x: Array, first: int = 0, last: int = -1) -> Array:
    """Return x with some axes in a row become one."""
    last %= len(x.shape)
    return reshape(x, (*x.shape[:first], prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))


def _reshaped(x: Array, shape: Shape) -> Shape | None:
    """Return the strides of a view of another shape, None if there is none."""
    sizes, strides = _collapsed(x.shape, x.strides)
    found: list[int] = []
    at = 0
    for size in shape:
        if at < len(sizes) and sizes[at] % size == 0:
            sizes[at] //= size
            found.append(sizes[at] * strides[at])
            at += sizes[at] == 1
        elif size == 1 and found:
            found.append(found[-1])
        else:
            return None
    return tuple(found)


def _collapsed(shape: Shape, strides: Shape) -> tuple[list[int], list[int]]:
    """Return shape and strides with axes that follow one another in memory become one."""
    sizes: list[int] = []
    steps: list[int] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if sizes and steps[-1] == stride * size:
            sizes[-1] *= size
            steps[-1] = stride
        else:
            sizes.append(size)
            steps.append(stride)
    return sizes or [1], steps or [1]


def broadcast_shape(one: Shape, other: Shape) -> Shape:
    """Return the shape of both together."""
    if one == other:
        return one
    length = max(len(one), len(other))
    one, other = ((1,) * (length - len(shape)) + shape for shape in (one, other))
    return tuple(map(max, one, other))


def zeros(shape: Shape, width: int) -> Array:
    """Return zeros."""
    return Array(shape, width, Operation((), nbytes=prod(shape) * width, tasks=3))


def total(x: Array, axes: Sequence[int], *, keep: bool = True) -> Array:
    """Return the sums over some axes, which are of size 1 then, or gone."""
    axes = sorted(axis % len(x.shape) for axis in axes)
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    out = x
    if prod(shape) != x.numbers:
        wide = FLOAT32_BYTES if x.width < FLOAT32_BYTES else 0  # what they are summed in
        operation = Operation(
            (x,), nbytes=prod(shape) * x.width, spare=prod(shape) * wide,
            back=lambda _, grads, __: [broadcast(one(grads), x.shape)],
        )  # fmt: skip
        out = Array(shape, x.width, operation)
    return out if keep else squeeze(out, *axes)


def concatenate(parts: Sequence[Array], axis: int) -> Array:
    """Return parts behind one another."""
    if len(parts) == 1:
        return parts[0]
    axis %= len(parts[0].shape)
    ends = [0, *accumulate(part.shape[axis] for part in parts)]

    def back(_: Operation, grads: Grads, wanted: Wanted) -> Grads:
        grad = one(grads)
        spans = zip(ends, ends[1:], wanted, strict=False)
        return [cut(grad, axis, start, stop) if want else None for start, stop, want in spans]

    shape = (*parts[0].shape[:axis], ends[-1], *parts[0].shape[axis + 1 :])
    width = parts[0].width
    operation = Operation(
        list(parts), back=back, nbytes=prod(shape) * width,
        tasks=len(parts) + 1,
    )  # fmt: skip
    return Array(shape, width, operation)


def pad(x: Array, axis: int, count: int) -> Array:
    """Return x with zeros before it or behind it."""
    if not count:
        return x
    shape = (*x.shape[:axis], x.shape[axis] + count, *x.shape[axis + 1 :])

    def back(_: Operation, grads: Grads, __: Wanted) -> Grads:
        return [cut(one(grads), axis, count, shape[axis])]

    return Array(shape, x.width, Operation((x,), back=back, nbytes=prod(shape) * x.width, tasks=3))


def updated(x: Array, part: Array, *, adds: bool = False) -> Array:
    """Return x with a part of it replaced by, or added to, another array; it may take its place."""

    def back(_: Operation, grads: Grads, __: Wanted) -> Grads:
        return [grads[0], None]

    whole = x.dense and x.size == x.numbers
    operation = Operation(
        (x, part), back=back if adds else None, nbytes=x.nbytes, donors=(0,) if whole else (),
        tasks=3,
    )  # fmt: skip
    return Array(x.shape, x.width, operation, x if whole else None)


def passed(_: Operation, grads: Grads, __: Wanted) -> Grads:
    """Return the gradient as it came."""
    return [grads[0]]


def one(grads: Grads) -> Array:
    """Return the gradient of an only output."""
    grad = grads[0]
    assert grad is not None, "an operation without a gradient is not gone back through"
    return grad
