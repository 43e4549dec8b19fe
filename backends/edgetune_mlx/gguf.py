"""Matrices in the blocks of a GGUF file, as they lie in it (see :mod:`edgetune.tensors.gguf`).

A matrix is its rows as bytes (N, bytes of a row), a row whole blocks. MLX has no kernel for these
types: a product makes the numbers first, on a graphics processor as on any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.finite import require_finite
from edgetune.tensors.gguf.rows import whole_bytes
from edgetune.tensors.gguf.tensor import GgufTensor, RowOrder
from edgetune.tensors.gguf.types import BY_NAME, TensorType
from edgetune_mlx.gguf_decode import decoded
from edgetune_mlx.matrices import Packing, Parts


@dataclass(frozen=True, slots=True)
class GgufPacking(Packing):
    """Blocks of one type."""

    kind: TensorType
    columns: RowOrder | None = None
    """How its columns lie, if not as in the checkpoint."""

    @classmethod
    def of(cls, name: str, columns: RowOrder | None = None) -> GgufPacking:
        """Return the packing of the type called ``name``."""
        return cls(BY_NAME[name], columns)

    def pack(self, values: mx.array) -> dict[str, mx.array]:
        """Take rows of bytes as a file has them."""
        return {"rows": values}

    def dense(self, parts: Parts, dtype: mx.Dtype) -> mx.array:
        """Return the numbers (..., K) of rows (..., bytes), computed in float32 and rounded once."""
        rows = parts["rows"]
        numbers = decoded(self.kind.name, rows.reshape(-1, self.kind.nbytes))
        numbers = numbers.reshape(*rows.shape[:-1], -1).astype(dtype)
        if self.columns is None:
            return numbers
        first, second, run = self.columns.first, self.columns.second, self.columns.run
        apart = numbers.reshape(-1, second, first, run).transpose(0, 2, 1, 3)
        return apart.reshape(numbers.shape)

    def makes_numbers(self, parts: Parts, dtype: mx.Dtype) -> bool:  # noqa: ARG002
        """Return True: there is no product with blocks."""
        return True


def read_blocks(stored: GgufTensor) -> mx.array:
    """Return the rows of a matrix in blocks as bytes, in the order of the checkpoint.

    Raises:
        ModelError: if scales are not finite, or the file ends early.
    """
    rows = whole_bytes(stored).reshape(stored.file_shape[0], stored.row_bytes)
    require_finite(stored, rows.reshape(-1).data)
    return mx.array(_in_order(stored, rows))


def _in_order(stored: GgufTensor, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if stored.order is None:
        return rows
    return rows[[stored.order.row_in_file(row) for row in range(len(rows))]]
