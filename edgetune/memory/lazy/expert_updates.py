"""Low-rank updates of experts as the MLX engine writes them: all sorted choices at once.

n choices, E experts, R rank, K inputs, N outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.memory.lazy.arrays import summed_along
from edgetune.memory.lazy.elementwise import cast, subtract, times
from edgetune.memory.lazy.graph import Array, Operation
from edgetune.memory.lazy.views import (
    concatenate,
    expand,
    flatten,
    reshape,
    squeeze,
    swapaxes,
    transpose,
    updated,
    zeros,
)
from edgetune.network.ops import ExpertUpdate
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class Gather:
    """Which rows go through which matrices; ``rows`` is None where each goes once."""

    count: int
    matrices: Array
    rows: Array | None


@dataclass(frozen=True, slots=True)
class Update:
    """A (E, R, K) and B (E, N, R) of one stack, in the type of products that gather."""

    a: Array
    b: Array

    @classmethod
    def of(cls, own: ExpertUpdate[Array], experts: int, kind: int) -> Update:
        """Return the update for products of a type."""
        rows, inputs = own.a.shape
        outputs, columns = own.b.shape
        a = cast(reshape(own.a, (experts, rows // experts, inputs)), kind)
        b = reshape(own.b, (outputs, columns // experts, experts))
        return cls(a, contiguous(cast(transpose(b, (2, 0, 1)), kind)))

    def low(self, x: Array, gather: Gather) -> Array:
        """Return what A makes (n, R) of x (rows, K)."""
        return _gathered(x, swapaxes(self.a, 1, 2), gather)

    def added(self, low: Array, gather: Gather) -> Array:
        """Return what is added to a product (n, N) for what A made."""
        return times(_gathered(low, swapaxes(self.b, 1, 2), gather))

    def low_back(self, grad: Array, gather: Gather) -> Array:
        """Return the gradient (n, R) of what A made, for that of the outputs (rows, N)."""
        return times(_gathered(grad, self.b, gather))

    def back(self, low_grad: Array, gather: Gather) -> Array:
        """Return what is added to the gradient (n, K) of the input."""
        return _gathered(low_grad, self.a, gather)

    def learned(
        self, x: Array, low: Array, low_grad: Array, grad: Array, runs: Array
    ) -> list[Array]:
        """Return the gradients of A (E R, K) and B (N, R E)."""
        a = segmented(swapaxes(low_grad, 0, 1), cast(x, low_grad.width), runs)
        b = times(segmented(swapaxes(cast(grad, low.width), 0, 1), low, runs))
        b = flatten(transpose(b, (1, 2, 0)), 1, 2)
        return [cast(flatten(a, 0, 1), FLOAT32_BYTES), cast(b, FLOAT32_BYTES)]


def runs_of(matrices: Array, experts: int) -> Array:
    """Return where the choices of each expert begin and end (E, 2), for their sorted numbers."""
    counts = updated(zeros((experts,), FLOAT32_BYTES), matrices, adds=True)
    ends = summed_along(counts, 0)
    return concatenate([expand(subtract(ends, counts), 1), expand(ends, 1)], 1)


def contiguous(x: Array) -> Array:
    """Return x with its numbers in order, a copy if they are not."""
    if x.rows:
        return x
    return Array(x.shape, x.width, Operation((x,), nbytes=x.nbytes))


def segmented(x: Array, y: Array, runs: Array) -> Array:
    """Return the products (E, M, N) of x (M, n) and y (n, N) over the columns of each expert."""
    shape, nbytes = (runs.shape[0], x.shape[0], y.shape[1]), x.shape[0] * y.shape[1] * x.width
    return Array(shape, x.width, Operation((x, y, runs), nbytes=shape[0] * nbytes))


def _gathered(x: Array, stack: Array, gather: Gather) -> Array:
    """Return rows of x, each times one of a stack of matrices, in the type of these."""
    count, kind, outputs = gather.matrices.shape[0], stack.width, stack.shape[2]
    others = (gather.matrices,) if gather.rows is None else (gather.matrices, gather.rows)
    operation = Operation((cast(expand(x, 1), kind), stack, *others), nbytes=count * outputs * kind)
    return squeeze(Array((count, 1, outputs), kind, operation), 1)
