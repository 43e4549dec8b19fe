"""A matrix in MX FP4 as gpt-oss's files have it: codes and scales in two tensors.

A row of the matrix is groups of 32 numbers: 16 bytes of codes, of which the lower half is the first
of two, and one byte that is the exponent of their scale (OCP Microscaling Formats 1.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgetune.tensors.header import StoredTensor

GROUP: Final = 32
"""Numbers that share a scale."""


@dataclass(frozen=True, slots=True)
class Mxfp4Tensor(StoredTensor):
    """A matrix (inputs, outputs) whose codes lie in ``file``, row by row of its transpose.

    ``dtype`` is that of the values, all of which it can express.
    """

    scales: StoredTensor
    """(outputs, inputs / 32) bytes."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns in the order in which they lie in the file."""
        inputs, outputs = self.shape
        return outputs, inputs
