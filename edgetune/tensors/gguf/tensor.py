"""A tensor of a GGUF file beside the tensor of the checkpoint that it was made from.

Converting a checkpoint moves rows, turns matrices and adds to norms, for the sake of llama.cpp's
kernels. What was done stands here as data, and is undone wherever a tensor is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from edgetune.tensors.gguf.types import BY_NAME, FLOATS, QUANTIZED, TensorType
from edgetune.tensors.header import StoredTensor

_NAMES = {dtype: name for name, dtype in FLOATS.items()}


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Rows (outer, first, second, run) of the checkpoint lie as (outer, second, first, run)."""

    outer: int
    first: int
    second: int
    run: int = 1
    before: int = 0
    """Rows before these, which lie where they do in the checkpoint."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.before + self.outer * self.first * self.second * self.run

    def row_in_file(self, row: int) -> int:
        """Return where a row of the checkpoint lies in the file."""
        if row < self.before:
            return row
        return self.before + self._moved(row - self.before)

    def _moved(self, row: int) -> int:
        row, inner = divmod(row, self.run)
        row, second = divmod(row, self.second)
        outer, first = divmod(row, self.first)
        return ((outer * self.second + second) * self.first + first) * self.run + inner

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the first row in the checkpoint, and the number of rows, of each run of the file."""
        if self.before:
            yield 0, self.before
        for outer in range(self.outer):
            for second in range(self.second):
                for first in range(self.first):
                    group = (outer * self.first + first) * self.second + second
                    yield self.before + group * self.run, self.run


@dataclass(frozen=True, slots=True)
class GgufTensor(StoredTensor):
    """A tensor with the ``shape`` that the checkpoint gives it, and how the file differs.

    ``dtype`` is a number format, or the name of a type of blocks.
    """

    order: RowOrder | None = None
    columns: RowOrder | None = None
    """How columns lie, where these are not in the checkpoint's order (the output of Gated DeltaNet)."""
    transposed: bool = False
    """Whether the file has (outputs, inputs) where the checkpoint has (inputs, outputs)."""
    added: float = 0.0
    """What the file has more than the checkpoint: Gemma's norms are kept around one."""
    decays: bool = False
    """Whether the file has ``-exp(x)`` for every x of the checkpoint (Gated DeltaNet)."""
    then: tuple[StoredTensor, ...] = ()
    """Tensors of the same type whose rows follow: the checkpoint has all of them in one."""

    @property
    def pieces(self) -> tuple[StoredTensor, ...]:
        """The tensors of the file that it is made of."""
        first = StoredTensor(self.file, self.name, self.dtype, self.shape, self.start, self.end)
        return (first, *self.then)

    @property
    def nbytes(self) -> int:
        """Number of bytes of all pieces."""
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def made(self) -> bool:
        """Whether its plain numbers do not lie in the file in rows, as the model has them."""
        return self.columns is not None

    def row_runs(self) -> Iterator[tuple[StoredTensor, list[tuple[int, int]]]]:
        """Yield the pieces, each with where its rows go: first row and number of rows of each run.

        No run of rows goes on from one piece to the next.
        """
        if self.order is None:
            first = 0
            for piece in self.pieces:
                rows = piece.nbytes // self.row_bytes
                yield piece, [(first, rows)]
                first += rows
            return
        runs = self.order.runs()
        for piece in self.pieces:
            left, own = piece.nbytes // self.row_bytes, []
            while left > 0:
                (run,) = islice(runs, 1)
                own.append(run)
                left -= run[1]
            yield piece, own

    @property
    def kind(self) -> TensorType:
        """The type of the file."""
        return BY_NAME[_NAMES.get(self.dtype, self.dtype)]

    @property
    def in_blocks(self) -> bool:
        """Whether the numbers are in blocks."""
        return self.dtype in QUANTIZED

    @property
    def read_dtype(self) -> str:
        """Number format of the values that reading gives: float32 unless the file's are plain."""
        changed = self.in_blocks or self.added or self.decays
        return "float32" if changed else self.dtype

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The axes as the file has them."""
        return self.shape[::-1] if self.transposed else self.shape

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the file."""
        return self.kind.row_bytes(self.file_shape[-1] if self.file_shape else 1)
