"""Rows of a merged model's tensors in float32, in the order and form in which a file wants them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgetune.exporters.turned import HELD, spans_of
from edgetune.methods.merging import Update
from edgetune.model import StoredTensor
from edgetune.tensors.reader import read_rows
from edgetune.tensors.writer import row_spans

Float32 = NDArray[np.float32]


class Rows(Protocol):
    """A tensor that is read by rows; that of one axis has rows of one number."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along every axis."""

    def read(self, start: int, stop: int) -> Float32:
        """Return rows ``start`` to ``stop``, in memory of their own."""


@dataclass(frozen=True, slots=True)
class MergedRows:
    """A stored tensor with what a merge does to it."""

    stored: StoredTensor
    change: Update | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored tensor's."""
        return self.stored.shape

    def read(self, start: int, stop: int) -> Float32:
        """Read the rows and change them."""
        rows = read_rows(self.stored, start, stop).astype(np.float32, copy=False)
        if self.change is not None:
            self.change.apply(rows, start, stop)
        return rows

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the runs in which all rows are best read."""
        return spans_of(self.stored)


@dataclass(frozen=True, slots=True)
class HeldRows:
    """A small tensor that is in memory: a new bias, factors of a rotation."""

    values: Float32

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's."""
        return self.values.shape

    def read(self, start: int, stop: int) -> Float32:
        """Copy the rows."""
        copied: Float32 = self.values[start:stop].copy()
        return copied


@dataclass(frozen=True, slots=True)
class Constant:
    """Zeros: what a file has to have and nothing reads."""

    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> Float32:
        """Make the rows."""
        return np.zeros((stop - start, *self.shape[1:]), np.float32)


@dataclass(frozen=True, slots=True)
class OfTokens:
    """The rows of a table of as many tokens as there are: what has no row of its own is as the first."""

    rows: Rows
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        """A row a token."""
        return (self.count, *self.rows.shape[1:])

    def read(self, start: int, stop: int) -> Float32:
        """Read the rows that are there, and the first for each other one."""
        last = self.rows.shape[0]
        own = self.rows.read(min(start, last), min(stop, last)) if start < last else None
        missing = stop - max(start, last)
        if missing <= 0:
            assert own is not None
            return own
        others = np.repeat(self.rows.read(0, 1), missing, axis=0)
        return others if own is None else np.concatenate((own, others))


@dataclass(frozen=True, slots=True)
class Stacked:
    """Matrices of one size, one after the other: those of all experts of a block, read by rows."""

    parts: tuple[Rows, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The rows of all, inputs."""
        outputs, inputs = self.parts[0].shape
        return len(self.parts) * outputs, inputs

    def read(self, start: int, stop: int) -> Float32:
        """Read the rows of each that are among them."""
        size, found = self.parts[0].shape[0], []
        for number in range(start // size, -(-stop // size)):
            first = number * size
            own = self.parts[number].read(max(start - first, 0), min(stop - first, size))
            found.append(own)
        return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Lists of as many numbers, one a row: the biases of all experts of a block."""

    parts: tuple[Rows, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """How many, and of how many numbers."""
        return (len(self.parts), *self.parts[0].shape)

    def read(self, start: int, stop: int) -> Float32:
        """Read the lists."""
        return np.stack([part.read(0, part.shape[0]) for part in self.parts[start:stop]])


@dataclass(frozen=True, slots=True)
class InRows:
    """A list of numbers as a matrix of rows of ``width`` numbers."""

    rows: Rows
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, width."""
        return self.rows.shape[0] // self.width, self.width

    def read(self, start: int, stop: int) -> Float32:
        """Read the rows' numbers."""
        return self.rows.read(start * self.width, stop * self.width).reshape(-1, self.width)


@dataclass(frozen=True, slots=True)
class RowsRescaled:
    """Every row, multiplied by a number of its own."""

    rows: Rows
    scales: Float32

    @property
    def shape(self) -> tuple[int, ...]:
        """The same."""
        return self.rows.shape

    def read(self, start: int, stop: int) -> Float32:
        """Change the rows in place."""
        rows = self.rows.read(start, stop)
        rows *= self.scales[start:stop].reshape(-1, *(1,) * (rows.ndim - 1))
        return rows


@dataclass(frozen=True, slots=True)
class Flat:
    """A matrix of one row, as a list of numbers."""

    rows: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Its inputs."""
        return self.rows.shape[1:]

    def read(self, start: int, stop: int) -> Float32:
        """Cut the row."""
        return self.rows.read(0, 1)[0, start:stop]


@dataclass(frozen=True, slots=True)
class OneByTap:
    """The weight of a convolution of each channel on its own (channels, 1, taps), as a matrix."""

    rows: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, taps."""
        channels, _, taps = self.rows.shape
        return channels, taps

    def read(self, start: int, stop: int) -> Float32:
        """Read the channels."""
        return self.rows.read(start, stop)[:, 0]


@dataclass(frozen=True, slots=True)
class Transposed:
    """A matrix that is stored (inputs, outputs), read by its outputs from the first to the last.

    Each of them is a column, for which all of the stored matrix is read: so as many as may be are
    held until they are asked for.
    """

    rows: Rows
    _held: list[tuple[int, Float32]] = field(default_factory=list, compare=False, repr=False)
    """The first output that is held, and those from there on."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs, inputs."""
        return self.rows.shape[::-1]

    def read(self, start: int, stop: int) -> Float32:
        """Return outputs; those behind the last are not held any more."""
        if not any(first <= start and stop <= first + len(x) for first, x in self._held):
            self._held[:] = [(start, self._gathered(start, stop))]
        ((first, held),) = self._held
        if stop == first + len(held):
            self._held.clear()
        whole = (start, stop) == (first, first + len(held))
        return held if whole else held[start - first : stop - first].copy()

    def _gathered(self, start: int, stop: int) -> Float32:
        outputs, inputs = self.shape
        stop = min(max(stop, start + HELD // inputs), outputs)
        found = np.empty((stop - start, inputs), np.float32)
        rows = self.rows
        for first, last in rows.spans() if isinstance(rows, MergedRows) else row_spans(rows.shape):
            found[:, first:last] = self.rows.read(first, last)[:, start:stop].T
        return found


@dataclass(frozen=True, slots=True)
class Reordered:
    """Row ``i`` is row ``order[i]`` of another tensor; neighbours stay near each other."""

    rows: Rows
    order: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """As many rows as are named."""
        return (len(self.order), *self.rows.shape[1:])

    def read(self, start: int, stop: int) -> Float32:
        """Read everything between the first and the last row that is wanted."""
        wanted = self.order[start:stop]
        first, last = int(wanted.min()), int(wanted.max())
        rows: Float32 = self.rows.read(first, last + 1)[wanted - first]
        return rows


@dataclass(frozen=True, slots=True)
class ColumnsReordered:
    """Column ``i`` is column ``order[i]`` of another matrix."""

    rows: Rows
    order: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """The same."""
        return self.rows.shape

    def read(self, start: int, stop: int) -> Float32:
        """Move the columns."""
        return np.ascontiguousarray(self.rows.read(start, stop)[:, self.order])


@dataclass(frozen=True, slots=True)
class Decays:
    """Every number ``x`` is ``-exp(x)``."""

    rows: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        """The same."""
        return self.rows.shape

    def read(self, start: int, stop: int) -> Float32:
        """Change the rows."""
        return -np.exp(self.rows.read(start, stop))


@dataclass(frozen=True, slots=True)
class Rescaled:
    """Every number ``x`` is ``(x + offset) * scale``."""

    rows: Rows
    offset: float
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The same."""
        return self.rows.shape

    def read(self, start: int, stop: int) -> Float32:
        """Change the rows in place."""
        rows = self.rows.read(start, stop)
        rows += np.float32(self.offset)
        rows *= np.float32(self.scale)
        return rows


@dataclass(frozen=True, slots=True)
class FirstRescaled:
    """The first ``count`` rows, multiplied: the queries of a fused projection."""

    rows: Rows
    count: int
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The same."""
        return self.rows.shape

    def read(self, start: int, stop: int) -> Float32:
        """Change what belongs to the first rows in place."""
        rows = self.rows.read(start, stop)
        rows[: max(0, self.count - start)] *= np.float32(self.scale)
        return rows
