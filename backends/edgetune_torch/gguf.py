"""Matrices in the blocks of a GGUF file, as they lie in it (see :mod:`edgetune.tensors.gguf`).

A row is whole blocks, and a matrix its rows. Blocks become float32 some at a time, with the same
operations in the same order as in :mod:`edgetune.tensors.gguf.dequantize`, and so the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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

    @property
    def converted(self) -> bool:
        """False: the bytes are those of the file."""
        return False

    @classmethod
    def of(cls, name: str) -> GgufFormat:
        """Return the format of the type called ``name``."""
        return cls(BY_NAME[name])

    def parts_of(self, outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, Part]:  # noqa: ARG002
        """Return the rows as bytes."""
        return {"values": Part((outputs, self.kind.row_bytes(inputs)), torch.uint8)}

    def __call__(
        self, shape: tuple[int, int], parts: Mapping[str, Tensor], workspace: Workspace
    ) -> GgufMatrix:
        """Return the matrix that lies in ``parts``."""
        return GgufMatrix(self.kind, shape, parts, workspace)


class GgufMatrix(StoredMatrix):
    """A matrix whose rows (outputs, bytes of a row) are blocks."""

    def __init__(
        self,
        kind: TensorType,
        shape: tuple[int, int],
        parts: Mapping[str, Tensor],
        workspace: Workspace,
    ) -> None:
        """Read ``parts``, which are of a type."""
        super().__init__(shape, parts, workspace)
        self.kind = kind

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the values, rounded once to ``dtype``."""
        out = self.workspace.take("matrix", self.shape, dtype)
        return unpack(self.kind, self.parts["values"], out, self.workspace)


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
