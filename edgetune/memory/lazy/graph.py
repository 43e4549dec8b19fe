"""The graph that MLX's operations make, as far as memory sees it: arrays without numbers.

An array has a layout, for that decides whether an operation is a view, takes the place of an
input or needs new memory (MLX 0.32, ``backend/common`` and ``backend/cpu``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

Shape = tuple[int, ...]
Grads = list["Array | None"]
Wanted = list[bool]
Back = Callable[["Operation", Grads, Wanted], "Sequence[Array | None]"]
"""From the gradients of an operation's outputs to those of its inputs that are wanted."""

MANY = 1 << 40
"""Users of a buffer whose place is never taken."""


class Buffer:
    """Bytes that several arrays may share."""

    __slots__ = ("held", "nbytes", "users")

    def __init__(self, nbytes: int, users: int = 0) -> None:
        """Count its users."""
        self.nbytes, self.users = nbytes, users
        self.held = 0
        """Operations that may still be running on it."""


class Operation:
    """What makes arrays of others; nothing is made before it is evaluated.

    ``views`` says for each output whose buffer it has, None if it needs its own of ``nbytes``,
    for which an input of ``donors`` may give its place. ``spare`` bytes are there while it runs;
    ``tasks`` counts what MLX queues for it.
    """

    __slots__ = (
        "back", "done", "donors", "inputs", "nbytes", "outputs", "seen", "spare", "tasks", "uses",
        "views", "walked",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Sequence[Array],
        *,
        back: Back | None = None,
        views: Sequence[int] | None = None,
        nbytes: int = 0,
        donors: Sequence[int] = (),
        spare: int = 0,
        tasks: int = 2,
    ) -> None:
        """Make an operation without outputs yet."""
        self.inputs, self.back, self.views = inputs, back, views
        self.nbytes, self.donors, self.spare = nbytes, donors, spare
        self.tasks = tasks if views is None else 1
        self.outputs: list[Array] = []
        self.done = False
        self.seen = self.walked = self.uses = 0


class Array:
    """An array: its shape, bytes a number, and how its numbers lie in a buffer.

    ``size`` numbers of the buffer belong to it; ``dense``: no other lies between them;
    ``rows``, ``columns``: they are in the order of the last, or the first, axis first.
    """

    __slots__ = (
        "buffer", "columns", "dense", "number", "operation", "rows", "shape", "size", "strides",
        "users", "width",
    )  # fmt: skip

    made = 0

    def __init__(
        self,
        shape: Shape,
        width: int,
        operation: Operation | None = None,
        layout: Array | None = None,
    ) -> None:
        """Make an array with its numbers in order, or lying as those of ``layout`` do."""
        Array.made += 1
        self.number = Array.made
        self.shape, self.width, self.operation = shape, width, operation
        self.users = 0
        self.buffer: Buffer | None = None
        if operation is not None:
            operation.outputs.append(self)
        if layout is None:
            self.strides = _strides(shape)
            self.size = prod(shape)
            self.dense = self.rows = True
            self.columns = self.size <= 1 or self.size == max(shape)
        else:
            self.strides, self.size = layout.strides, layout.size
            self.dense, self.rows, self.columns = layout.dense, layout.rows, layout.columns

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a copy in order."""
        return prod(self.shape) * self.width

    def lies(self, strides: Shape, size: int, *, dense: bool) -> Array:
        """Lay the numbers out with these strides, and return the array."""
        self.strides, self.size, self.dense = strides, size, dense
        self.rows, self.columns = _ordered(self.shape, strides)
        return self


def given(shape: Shape, width: int) -> Array:
    """Return an array that is there, and whose bytes are counted elsewhere."""
    array = Array(shape, width)
    array.buffer = Buffer(0, MANY)
    array.users = MANY
    return array


def _strides(shape: Shape) -> Shape:
    strides, step = [0] * len(shape), 1
    for axis in range(len(shape) - 1, -1, -1):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def _ordered(shape: Shape, strides: Shape) -> tuple[bool, bool]:
    """Return whether numbers lie in the order of the last axis first, and of the first one."""
    rows = columns = True
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            rows = rows and stride == step
            step *= size
    step = 1
    for size, stride in zip(shape, strides, strict=True):
        if size != 1:
            columns = columns and stride == step
            step *= size
    return rows, columns


def spanned(shape: Shape, strides: Shape) -> int:
    """Return how many numbers of a buffer there are from the first to the last."""
    return sum(stride * (size - 1) for size, stride in zip(shape, strides, strict=True)) + 1


def unrepeated(shape: Shape, strides: Shape) -> int:
    """Return how many numbers there are, those along a stride of 0 counted once."""
    return prod(size for size, stride in zip(shape, strides, strict=True) if stride > 0)
