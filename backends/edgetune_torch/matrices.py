"""How a frozen matrix is stored, and how it becomes numbers again for the time of one product.

A format says which parts a matrix (outputs, inputs) consists of; the parts lie in memory that
someone else owns: a buffer of a resident block, or a slot that blocks are streamed through.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import Any, ClassVar, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.errors import UsageError
from edgetune_torch.workspace import Workspace

FORMATS = {
    "none": "edgetune_torch.matrices:DenseMatrix",
    "int8": "edgetune_torch.int8:Int8Matrix",
    "nf4": "edgetune_torch.nf4:Nf4Matrix",
}


class Matrix(Protocol):
    """A frozen matrix (outputs, inputs), wherever it is at the moment."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""

    @property
    def workspace(self) -> Workspace:
        """Scratch memory for products with this matrix."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix as plain numbers, valid until the next call on any matrix.

        The caller must neither write to it nor keep it.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a stored matrix."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * self.dtype.itemsize


class Format(Protocol):
    """How a matrix is stored: as which parts, and whether a file has the same bytes."""

    @property
    def converted(self) -> bool:
        """Whether values are written to the parts; else a file's bytes are the only part."""

    def parts_of(self, outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, Part]:
        """Return the parts of a matrix that is stored as ``dtype`` in the checkpoint."""

    def __call__(
        self, shape: tuple[int, int], parts: Mapping[str, Tensor], workspace: Workspace
    ) -> StoredMatrix:
        """Return the matrix over parts that exist."""


class StoredMatrix(ABC):
    """A matrix in one format, over parts that exist."""

    def __init__(self, shape: tuple[int, int], parts: Mapping[str, Tensor], workspace: Workspace):
        """Take ``parts``, which have the shapes that :meth:`Format.parts_of` says."""
        self.shape = shape
        self.parts = dict(parts)
        self.workspace = workspace

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix as plain numbers; see :class:`Matrix`."""

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.nbytes for part in self.parts.values())


class WritableMatrix(StoredMatrix):
    """A matrix in a format that any numbers can be brought into; the class is the format."""

    converted: ClassVar[bool] = True

    @staticmethod
    @abstractmethod
    def parts_of(outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, Part]:
        """Return the parts; see :class:`Format`."""

    @abstractmethod
    def write(self, values: Tensor) -> None:
        """Store ``values`` (outputs, inputs) in the parts."""

    def take(self, parts: Mapping[str, NDArray[Any]]) -> None:
        """Copy parts that a file has in this very format; the end of a longer one becomes zeros."""
        for name, values in parts.items():
            own, found = self.parts[name].view(-1), torch.from_numpy(values).reshape(-1)
            own[: len(found)].copy_(found)
            own[len(found) :].zero_()


class DenseMatrix(WritableMatrix):
    """A matrix in the numbers of its checkpoint."""

    converted = False

    @staticmethod
    def parts_of(outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, Part]:
        """Return the values themselves."""
        return {"values": Part((outputs, inputs), dtype)}

    def write(self, values: Tensor) -> None:
        """Copy ``values``."""
        self.parts["values"].copy_(values)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the values, widened only if the type differs."""
        values = self.parts["values"]
        if values.dtype == dtype:
            return values
        return self.workspace.take("matrix", self.shape, dtype).copy_(values)


class UnpackedMatrix(DenseMatrix):
    """A matrix in plain numbers that its checkpoint has in another form."""

    converted = True


class TransposedMatrix(DenseMatrix):
    """A matrix that its checkpoint stores (inputs, outputs), as GPT-2 does."""

    @staticmethod
    def parts_of(outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, Part]:
        """Return the values as they are in the file."""
        return {"values": Part((inputs, outputs), dtype)}

    def write(self, values: Tensor) -> None:
        """Copy ``values`` (outputs, inputs)."""
        self.parts["values"].copy_(values.T)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the values (outputs, inputs)."""
        values = self.parts["values"]
        if values.dtype == dtype:
            return values.T
        return self.workspace.take("matrix", self.shape[::-1], dtype).copy_(values).T


def matrix_class(quantization: str) -> type[WritableMatrix]:
    """Return the class of a storage format.

    Raises:
        UsageError: if this backend does not have it.
    """
    if quantization not in FORMATS:
        supported = ", ".join(FORMATS)
        raise UsageError(f"Unsupported quantization {quantization!r} on torch: it has {supported}.")
    module, _, name = FORMATS[quantization].partition(":")
    found: type[WritableMatrix] = getattr(import_module(module), name)
    return found


class _Once:
    """A matrix that is unpacked once for several products in a row."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._found: tuple[torch.dtype, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self._matrix.shape

    @property
    def workspace(self) -> Workspace:
        return self._matrix.workspace

    @property
    def nbytes(self) -> int:
        return self._matrix.nbytes

    def dense(self, dtype: torch.dtype) -> Tensor:
        if self._found is None or self._found[0] != dtype:
            self._found = dtype, self._matrix.dense(dtype)
        return self._found[1]


def unpacked_once(matrix: Matrix) -> Matrix:
    """Return a matrix of which each dense form is computed once."""
    return _Once(matrix)


def store(values: Tensor, quantization: str, workspace: Workspace | None = None) -> WritableMatrix:
    """Return ``values`` (outputs, inputs) in a storage format, in memory of its own."""
    cls, (outputs, inputs) = matrix_class(quantization), values.shape
    parts = {
        name: torch.empty(part.shape, dtype=part.dtype, device=values.device)
        for name, part in cls.parts_of(outputs, inputs, values.dtype).items()
    }
    matrix = cls((outputs, inputs), parts, workspace or Workspace(values.device))
    matrix.write(values)
    return matrix
