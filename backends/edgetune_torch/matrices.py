"""How a frozen matrix is stored, and how it becomes numbers again for the time of one product."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Matrix(Protocol):
    """A frozen matrix (outputs, inputs) in some storage format."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix as plain numbers; the caller must not write to it."""

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""


class DenseMatrix:
    """A matrix stored as it came."""

    def __init__(self, values: Tensor) -> None:
        """Keep ``values`` (outputs, inputs)."""
        self.values = values

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the values, converted only if the type differs."""
        return self.values.to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return self.values.nbytes


class Nf4Matrix:
    """Four bits a weight: NF4, blocks of 64, doubly quantized scales (Dettmers 2023, section 3).

    bitsandbytes' functions are used, not its ``Linear4bit``: that module repacks its weight in
    the first evaluation on a CPU with AVX512-BF16 and then trains nothing (0.50).
    """

    def __init__(self, values: Tensor) -> None:
        """Quantize ``values`` (outputs, inputs)."""
        from bitsandbytes.functional import quantize_4bit

        self.packed, self.state = quantize_4bit(
            values.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
        )

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the dequantized matrix in ``dtype``."""
        from bitsandbytes.functional import dequantize_4bit

        self.state.dtype = dtype
        values: Tensor = dequantize_4bit(self.packed, self.state)
        return values

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of both levels of scales."""
        scales = self.state.absmax.nbytes + self.state.state2.absmax.nbytes
        return int(self.packed.nbytes + scales)


def store(values: Tensor, quantization: str) -> Matrix:
    """Return a projection's weight (outputs, inputs) in the planned storage format."""
    match quantization:
        case "none":
            return DenseMatrix(values)
        case "nf4":
            return Nf4Matrix(values)
        case other:
            raise ValueError(f"the plan should have refused the quantization {other!r}")
