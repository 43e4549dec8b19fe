"""The operations of torch that others consist of: what each makes, saves and makes on its way back."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.memory.sized import Gradient, Sized, Storage, Tape, outside
from edgetune.storage import FLOAT32_BYTES


class Elementary:
    """One pass; ``ledger`` counts it and ``tape`` is its way back."""

    def __init__(self, ledger: Ledger, rows: BatchShape) -> None:
        """Begin a pass on rows of one shape."""
        self.ledger = ledger
        self.batch = rows
        self.tape = Tape(ledger)

    def new(self, nbytes: int) -> Storage:
        """Return bytes that are live until nothing refers to them."""
        return Storage(self.ledger, nbytes)

    def as_width(self, x: Sized, width: int) -> Sized:
        """Return x in another number format, itself if it has that one."""
        if x.width == width:
            return x
        before = x.nbytes
        return self.tape.made(
            x.shape, width, (x,), lambda _: (self.new(before),), heads_apart=x.heads_apart
        )

    def copied(self, x: Sized) -> Sized:
        """Return x with its numbers next to each other; gradients pass."""
        return self.tape.made(x.shape, x.width, (x,), _passed)

    def matmul(self, x: Sized, y: Sized, outputs: int) -> Sized:
        """Return ``x y`` (..., outputs), of which each saves the other."""
        shape, sizes = (*x.shape[:-1], outputs), (x.nbytes, y.nbytes)
        wanted = (x.needs, y.needs)
        return self.tape.made(
            shape, x.width, (x, y), lambda _: self._each(sizes, wanted),
            saved=(y if x.needs else None, x if y.needs else None),
        )  # fmt: skip

    def unmade_matmul(self, x: Sized, y: Sized, outputs: int) -> Sized:
        """Return the same, of which only the way back is wanted."""
        sizes, wanted = (x.nbytes, y.nbytes), (x.needs, y.needs)
        out = outside((*x.shape[:-1], outputs), x.width)
        saved = (y if x.needs else None, x if y.needs else None)
        self.tape.record((x, y), (out,), saved, lambda _: self._each(sizes, wanted))
        return out

    def masked(self, x: Sized, hidden: Storage) -> Sized:
        """Return x with what is hidden in place of some of its numbers."""
        size = x.nbytes
        return self.tape.made(x.shape, x.width, (x,), lambda _: (self.new(size),), saved=(hidden,))

    def plus(self, x: Sized, y: Sized) -> Sized:
        """Return ``x + y`` of equal shapes."""
        return self.tape.made(
            x.shape, x.width, (x, y), lambda grads: (grads[0], grads[0]),
            heads_apart=x.heads_apart,
        )  # fmt: skip

    def plus_vector(self, x: Sized, vector: Sized) -> Sized:
        """Return ``x + vector`` over the last axis."""
        size, wanted = vector.nbytes, vector.needs
        wide = FLOAT32_BYTES * x.numbers if x.width != FLOAT32_BYTES else 0

        def back(grads: list[Gradient]) -> Sequence[Gradient]:
            if not wanted:
                return grads[0], None
            self.ledger.transient(wide, size)  # summed in float32
            return grads[0], self.new(size)

        return self.tape.made(x.shape, x.width, (x, vector), back)

    def minus(self, x: Sized, y: Sized) -> Sized:
        """Return ``x - y`` of equal shapes."""
        size = y.nbytes
        return self.tape.made(x.shape, x.width, (x, y), lambda grads: (grads[0], self.new(size)))

    def scaled(self, x: Sized, factor: float) -> Sized:  # noqa: ARG002
        """Return a multiple of x."""
        size = x.nbytes
        return self.tape.made(x.shape, x.width, (x,), lambda _: (self.new(size),))

    def times_vector(self, x: Sized, vector: Sized) -> Sized:
        """Return ``x * vector``: the vector's gradient is a whole product before it is a sum."""
        size, small, width = x.nbytes, vector.nbytes, x.width
        wanted = (x.needs, vector.needs)

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            first = self.new(size) if wanted[0] else None
            if not wanted[1]:
                return first, None
            self.ledger.transient(size, small)
            return first, self.new(small)

        return self.tape.made(
            x.shape, width, (x, vector), back,
            saved=(vector if x.needs else None, x if vector.needs else None),
            heads_apart=x.heads_apart,
        )  # fmt: skip

    def pointwise(self, x: Sized, *, saves_output: bool = False) -> Sized:
        """Return a function of each number, with one array on its way back."""
        size = x.nbytes
        storage = self.new(size)
        saved = storage if saves_output else x
        return self.tape.made(
            x.shape, x.width, (x,), lambda _: (self.new(size),), storage=storage, saved=(saved,)
        )

    def joined(
        self, parts: Sequence[Sized], shape: tuple[int, ...], *, heads_apart: bool = False
    ) -> Sized:
        """Return parts in one array; their gradients are views of its own."""
        count = len(parts)
        return self.tape.made(
            shape,
            parts[0].width,
            parts,
            lambda grads: (grads[0],) * count,
            heads_apart=heads_apart,
        )

    def parted(self, x: Sized, shapes: Sequence[tuple[int, ...]]) -> list[Sized]:
        """Return views of the parts of x; their gradients are put together in a new array."""
        parts, size = [x.part(shape) for shape in shapes], x.nbytes
        if x.needs:
            self.tape.record((x,), parts, (), lambda _: (self.new(size),))
        return parts

    def sliced(self, x: Sized, shape: tuple[int, ...], **layout: bool) -> Sized:
        """Return a view of a part of x, whose gradient gets the size of x."""
        part, size = x.part(shape, **layout), x.nbytes
        if x.needs:
            self.tape.record((x,), (part,), (), lambda _: (self.new(size),))
        return part

    def spread(self, x: Sized, shape: tuple[int, ...], *, copied: bool = True) -> Sized:
        """Return x several times side by side; the gradients are summed."""
        small, storage = x.nbytes, None if copied else x.storage
        return self.tape.made(shape, x.width, (x,), lambda _: (self.new(small),), storage=storage)

    def _each(self, sizes: Sequence[int], wanted: Sequence[bool]) -> Sequence[Gradient]:
        return [self.new(size) if want else None for size, want in zip(sizes, wanted, strict=True)]


def _passed(grads: list[Gradient]) -> Sequence[Gradient]:
    return (grads[0],)
