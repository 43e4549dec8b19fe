"""How the rows of embedding and head are stored: as numbers, or in the blocks of a GGUF file.

D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edgetune.tensors.gguf.types import BY_NAME, TensorType
from edgetune_torch.gguf import unpack
from edgetune_torch.workspace import Workspace


class RowFormat(Protocol):
    """Rows of D numbers in one format."""

    @property
    def dtype(self) -> torch.dtype:
        """Number format of a row that is looked up."""

    def empty(self, count: int, *, pin_memory: bool = False) -> Tensor:
        """Return memory for so many rows as they are stored."""

    def looked_up(self, rows: Tensor) -> Tensor:
        """Return stored rows (R, ...) as numbers (R, D) in :attr:`dtype`."""

    def multiplied(self, rows: Tensor, dtype: torch.dtype, workspace: Workspace) -> Tensor:
        """Return stored rows as numbers (R, D) to multiply, valid until the next call."""


@dataclass(frozen=True, slots=True)
class PlainRows:
    """Rows of numbers."""

    width: int
    dtype: torch.dtype

    def empty(self, count: int, *, pin_memory: bool = False) -> Tensor:
        """Return memory for rows."""
        return torch.empty(count, self.width, dtype=self.dtype, pin_memory=pin_memory)

    def looked_up(self, rows: Tensor) -> Tensor:
        """Return the rows themselves."""
        return rows

    def multiplied(self, rows: Tensor, dtype: torch.dtype, workspace: Workspace) -> Tensor:
        """Return the rows, converted only if the type differs."""
        if rows.dtype == dtype:
            return rows
        return workspace.take("matrix", tuple(rows.shape), dtype).copy_(rows)


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Rows in blocks of one type; they are looked up as float32."""

    width: int
    kind: TensorType
    workspace: Workspace
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, width: int, name: str, workspace: Workspace) -> BlockRows:
        """Return the format of rows in the type called ``name``."""
        return cls(width, BY_NAME[name], workspace)

    def empty(self, count: int, *, pin_memory: bool = False) -> Tensor:
        """Return memory for the bytes of rows."""
        nbytes = self.kind.row_bytes(self.width)
        return torch.empty(count, nbytes, dtype=torch.uint8, pin_memory=pin_memory)

    def looked_up(self, rows: Tensor) -> Tensor:
        """Return the numbers of rows, in memory of their own."""
        out = torch.empty(len(rows), self.width, device=rows.device)
        return unpack(self.kind, rows, out, self.workspace)

    def multiplied(self, rows: Tensor, dtype: torch.dtype, workspace: Workspace) -> Tensor:
        """Return the numbers of rows, rounded once to ``dtype``."""
        out = workspace.take("matrix", (len(rows), self.width), dtype)
        return unpack(self.kind, rows, out, workspace)
