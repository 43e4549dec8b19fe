"""Matrices in the blocks of a GGUF file, as they lie in it (see :mod:`edgetune.tensors.gguf`).

A row is whole blocks, and a matrix its rows. Blocks become float32 some at a time, with the same
operations in the same order as in :mod:`edgetune.tensors.gguf.dequantize`, and so the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune.tensors.gguf.tensor import RowOrder
from edgetune.tensors.gguf.types import BY_NAME, TensorType
from edgetune_torch.gguf_decode import decoder
from edgetune_torch.matrices import Part, StoredMatrix
from edgetune_torch.workspace import Workspace

VALUES = 1 << 20
"""Weights that are unpacked at a time."""


@dataclass(frozen=True, slots=True)
class GgufFormat:
    """A matrix in blocks of one type."""

    kind: TensorType
    columns: RowOrder | None = None
    """How its columns lie, if not as in the checkpoint."""

    @property
    def converted(self) -> bool:
        """False: the bytes are those of the file."""
        return False

    @classmethod
    def of(cls, name: str, columns: RowOrder | None = None) -> GgufFormat:
        """Return the format of the type called ``name``."""
        return cls(BY_NAME[name], columns)

    def parts_of(self, outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, Part]:  # noqa: ARG002
        """Return the rows as bytes."""
        return {"values": Part((outputs, self.kind.row_bytes(inputs)), torch.uint8)}

    def __call__(
        self, shape: tuple[int, int], parts: Mapping[str, Tensor], workspace: Workspace
    ) -> GgufMatrix:
        """Return the matrix that lies in ``parts``."""
        return GgufMatrix(self, shape, parts, workspace)


class GgufMatrix(StoredMatrix):
    """A matrix whose rows (outputs, bytes of a row) are blocks."""

    def __init__(
        self,
        form: GgufFormat,
        shape: tuple[int, int],
        parts: Mapping[str, Tensor],
        workspace: Workspace,
    ) -> None:
        """Read ``parts``, which are in a format."""
        super().__init__(shape, parts, workspace)
        self.kind, self.columns = form.kind, form.columns

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the values, rounded once to ``dtype``."""
        out = self.workspace.take("matrix", self.shape, dtype)
        if self.columns is None:
            return unpack(self.kind, self.parts["values"], out, self.workspace)
        return self._in_order(self.columns, out)

    def _in_order(self, columns: RowOrder, out: Tensor) -> Tensor:
        """Unpack some rows at a time, and put each column of the file in its place."""
        first, second, run = columns.first, columns.second, columns.run
        outputs, inputs = self.shape
        step = max(1, VALUES // inputs)
        for start in range(0, outputs, step):
            rows = self.parts["values"][start : start + step]
            found = self.workspace.take("columns", (len(rows), inputs), out.dtype)
            unpack(self.kind, rows, found, self.workspace)
            target = out[start : start + step].view(-1, first, second, run)
            target.copy_(found.view(-1, second, first, run).transpose(1, 2))
        return out


def unpack(kind: TensorType, rows: Tensor, out: Tensor, workspace: Workspace) -> Tensor:
    """Write the numbers of ``rows`` (R, bytes of a row) to ``out`` (R, inputs), and return it."""
    blocks, numbers = rows.view(-1, kind.nbytes), out.view(-1, kind.block)
    decode, step = decoder(kind.name), max(1, VALUES // kind.block)
    for start in range(0, len(blocks), step):
        part, target = blocks[start : start + step], numbers[start : start + step]
        codes = workspace.take("codes", tuple(target.shape), torch.uint8)
        if out.dtype == torch.float32:
            decode(part, target, codes)
        else:
            values = workspace.take("values", tuple(target.shape), torch.float32)
            decode(part, values, codes)
            target.copy_(values)
    return out
