"""How the matrices of one block lie in one buffer, so that a block is one read and one copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune.shape import Linear
from edgetune.tensors.gguf.tensor import RowOrder
from edgetune_torch.gguf import GgufFormat
from edgetune_torch.matrices import (
    DenseMatrix,
    Format,
    Part,
    StoredMatrix,
    TransposedMatrix,
    UnpackedMatrix,
    matrix_class,
)
from edgetune_torch.workspace import Workspace

ALIGNMENT = 64
"""Bytes; a cache line, and more than any number format needs."""

PAGE = 4096
"""Blocks begin and end at multiples of a page."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a matrix lies, in bytes from the beginning of the buffer."""

    part: Part
    offset: int

    def view(self, buffer: Tensor) -> Tensor:
        """Return the part as a view of the buffer."""
        piece = buffer[self.offset : self.offset + self.part.nbytes]
        return piece.view(self.part.dtype).view(self.part.shape)


@dataclass(frozen=True, slots=True)
class StoredAs:
    """How a file has a matrix."""

    dtype: torch.dtype
    transposed: bool = False
    """Whether it has (inputs, outputs)."""
    blocks: str | None = None
    """The type of its blocks, None where they are plain numbers."""
    columns: RowOrder | None = None
    """How the columns of blocks lie, if not as in the checkpoint."""
    packed: bool = False
    """Whether its numbers have to be made of something else (codes and scales)."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """One matrix of the block: its format and where its parts are."""

    linear: Linear
    format: Format
    places: Mapping[str, Place]


class Layout:
    """The matrices of one block in a fixed order."""

    def __init__(
        self, linears: tuple[Linear, ...], quantization: str, stored: tuple[StoredAs, ...]
    ) -> None:
        """Lay out ``linears``, each of which a file has as ``stored`` says."""
        self.fittings: list[Fitting] = []
        end = 0
        for linear, found in zip(linears, stored, strict=True):
            form = _format(quantization, found)
            places = {}
            for name, part in form.parts_of(linear.outputs, linear.inputs, found.dtype).items():
                start = -(-end // ALIGNMENT) * ALIGNMENT
                places[name] = Place(part, start)
                end = start + part.nbytes
            self.fittings.append(Fitting(linear, form, places))
        self.nbytes = -(-end // PAGE) * PAGE

    def bind(self, buffer: Tensor, workspace: Workspace) -> dict[str, StoredMatrix]:
        """Return the matrices by key, as views of a buffer of ``nbytes`` bytes."""
        return {
            fitting.linear.key: fitting.format(
                (fitting.linear.outputs, fitting.linear.inputs),
                {name: place.view(buffer) for name, place in fitting.places.items()},
                workspace,
            )
            for fitting in self.fittings
        }


def _format(quantization: str, stored: StoredAs) -> Format:
    if stored.blocks is not None:
        return GgufFormat.of(stored.blocks, stored.columns)
    cls = matrix_class("none" if quantization == "gguf" else quantization)
    if cls is DenseMatrix and stored.packed:
        return UnpackedMatrix
    return TransposedMatrix if cls is DenseMatrix and stored.transposed else cls
