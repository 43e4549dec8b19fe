"""Values that are only counted, and the operations that others consist of.

An operation says what it takes forward and, if a gradient of an input is wanted, on the way back.
Counts are those of torch, as its dispatcher sees them. Nothing is kept: how long a value lives is
a matter of bytes (:mod:`edgetune.memory.eager`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from edgetune.speed.rows import Rows
from edgetune.speed.tally import Tally


@dataclass(slots=True, eq=False)
class Counted:
    """A tensor as far as time sees it: its shape and the bytes of a number."""

    shape: tuple[int, ...]
    width: int
    needs: bool
    """Whether its gradient is wanted."""
    given: bool = False
    """Whether a gradient came already, so that another one is added to it."""

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return prod(self.shape) * self.width


def outside(shape: tuple[int, ...], width: int) -> Counted:
    """Return a value that is there and wants no gradient."""
    return Counted(shape, width, needs=False)


def trained(shape: tuple[int, ...], width: int, *, needs: bool) -> Counted:
    """Return a trained tensor: its gradients are added to bytes that are there."""
    return Counted(shape, width, needs, given=True)


class Counting:
    """What the passes of a block take: ``ahead``, ``back``, and for each ``state`` of what is trained.

    ``left_out`` is what ``ahead`` has of the ``unread`` projections, which a block that is computed
    again leaves out.
    """

    def __init__(self, rows: Rows) -> None:
        """Begin passes over rows of one shape with nothing counted."""
        self.batch = rows
        self.ahead, self.back, self.state = Tally(), Tally(), Tally()
        self.unread: frozenset[str] = frozenset()
        self.left_out = Tally()

    def made(self, shape: tuple[int, ...], width: int, inputs: Sequence[Counted]) -> Counted:
        """Return an operation's output; a second gradient of an input is added to the first."""
        needs = False
        for x in inputs:
            if x.needs:
                needs = True
                if x.given:
                    self.back.count(1, 3 * x.nbytes)
                x.given = True
        return Counted(shape, width, needs)

    def done(
        self,
        out: Counted,
        inputs: Sequence[Counted],
        ahead: tuple[float, float],
        back: tuple[float, float],
    ) -> Counted:
        """Return ``out``, which several operations made: launches and bytes of each direction.

        Where they are fused, each direction is one that reads and writes once.
        """
        if self.batch.fused:
            once = sum(x.nbytes for x in inputs)
            ahead, back = (1, once + out.nbytes), (1, 2 * once + out.nbytes)
        self.ahead.count(*ahead)
        if out.needs:
            self.back.count(*back)
        return out

    # views, which move nothing

    def view(self, x: Counted, *shape: int, launches: int = 1, back: int = 1) -> Counted:
        """Return x in another shape."""
        self.ahead.launches += launches
        if x.needs:
            self.back.launches += back
        return self.made(shape, x.width, (x,))

    def sliced(self, x: Counted, *shape: int) -> Counted:
        """Return a part of x, whose gradient is one of x that is zero elsewhere."""
        self.ahead.launches += 1
        if x.needs:
            self.back.count(1, 2 * x.nbytes)
        return self.made(shape, x.width, (x,))

    def parted(self, x: Counted, shapes: Sequence[tuple[int, ...]]) -> list[Counted]:
        """Return the parts of x, whose gradients are put together."""
        self.ahead.launches += 1
        if x.needs:
            self.back.count(1, 2 * x.nbytes)
        self.made(x.shape, x.width, (x,))
        return [Counted(shape, x.width, x.needs) for shape in shapes]

    # element by element

    def as_width(self, x: Counted, width: int) -> Counted:
        """Return x in another number format, itself if it has that one."""
        if x.width == width:
            return x
        return self.pointwise(x, width=width)

    def pointwise(
        self, *inputs: Counted, launches: int = 1, back: int = 1, width: int | None = None
    ) -> Counted:
        """Return a function of each number of inputs of one size; ``back`` is of each of them."""
        first = inputs[0]
        out = self.made(first.shape, first.width if width is None else width, inputs)
        moved = sum(x.nbytes for x in inputs) + out.nbytes
        self.ahead.count(launches, launches * moved)
        wanted = back * sum(x.needs for x in inputs)
        self.back.count(wanted, wanted * moved)
        return out

    def saving_output(self, x: Counted) -> Counted:
        """Return a function of each number whose way back reads what it made, detached from it."""
        self.ahead.launches += 1
        self.back.launches += x.needs
        return self.pointwise(x)

    def copied(self, x: Counted, shape: tuple[int, ...]) -> Counted:
        """Return x with its numbers next to each other in another shape; gradients are views."""
        self.ahead.count(2, 2 * x.nbytes)
        if x.needs:
            self.back.launches += 1
        return self.made(shape, x.width, (x,))

    def with_vector(self, x: Counted, vector: Counted, *, times: bool) -> Counted:
        """Return x plus or times a vector over its last axis, whose gradient is a sum."""
        out = self.made(x.shape, x.width, (x, vector))
        self.ahead.count(1, 2 * x.nbytes)
        if x.needs and times:
            self.back.count(1, 2 * x.nbytes)
        if vector.needs:
            self.back.count(2 + times, (1 + 3 * times) * x.nbytes)
        return out

    def joined(self, parts: Sequence[Counted], shape: tuple[int, ...]) -> Counted:
        """Return parts in one array; their gradients are views."""
        out = self.made(shape, parts[0].width, parts)
        self.ahead.count(1, 2 * out.nbytes)
        self.back.launches += sum(part.needs for part in parts)
        return out

    def spread(self, x: Counted, shape: tuple[int, ...]) -> Counted:
        """Return copies of x side by side; their gradients are summed."""
        out = self.made(shape, x.width, (x,))
        self.ahead.count(2, 2 * out.nbytes)
        if x.needs:
            self.back.count(1, out.nbytes + x.nbytes)
        return out

    # products

    def matmul(self, x: Counted, y: Counted, outputs: int, *, views: int = 1) -> Counted:
        """Return ``x y`` (..., outputs), each of which is transposed for the other's gradient."""
        out = self.made((*x.shape[:-1], outputs), x.width, (x, y))
        flops = 2 * x.numbers * outputs
        self.multiply(self.ahead, flops, x.width)
        self.ahead.launches += 1 + views
        wanted = x.needs + y.needs
        self.multiply(self.back, wanted * flops, x.width)
        self.back.launches += wanted * (2 + views)
        return out

    def multiply(self, tally: Tally, flops: float, width: int) -> None:
        """Count a product in a number format."""
        if width == self.batch.width:
            tally.products += flops
        else:
            tally.wide += flops
