"""Eight bits a weight: one scale a row.

Row ``i`` is stored as ``q_ij = round(w_ij / s_i)`` with ``s_i = max_j |w_ij| / 127``, rounded
half to even, q int8 in [-127, 127] and s float32; a row of zeros has s = 1. The value of a weight
is ``q_ij * s_i``, computed in float32 and then rounded to the type of the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune_torch.matrices import Part, WritableMatrix

ROWS = 256
"""Rows that are converted at a time, to bound the float32 copies."""


class Int8Matrix(WritableMatrix):
    """A matrix of int8 codes (outputs, inputs) and float32 scales (outputs, 1)."""

    @staticmethod
    def parts_of(outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, Part]:  # noqa: ARG004
        """Return codes and scales; the checkpoint's dtype does not matter."""
        return {
            "codes": Part((outputs, inputs), torch.int8),
            "scales": Part((outputs, 1), torch.float32),
        }

    def write(self, values: Tensor) -> None:
        """Quantize ``values``, some rows at a time."""
        codes, scales = self.parts["codes"], self.parts["scales"]
        for start in range(0, self.shape[0], ROWS):
            rows = slice(start, start + ROWS)
            wide = values[rows].float()
            scale = wide.abs().amax(dim=1, keepdim=True) / 127
            scale = torch.where(scale == 0, 1.0, scale)
            codes[rows] = (wide / scale).round_().to(torch.int8)
            scales[rows] = scale

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return codes times scales."""
        return self.rows(slice(0, self.shape[0]), dtype)

    def rows(self, span: slice, dtype: torch.dtype) -> Tensor:
        """Return some rows as plain numbers, valid until the next call on any matrix."""
        codes, scales = self.parts["codes"][span], self.parts["scales"][span]
        out = self.workspace.take("matrix", tuple(codes.shape), dtype)
        if out.device.type != "cpu":
            return product(codes, scales, out)
        for start in range(0, len(codes), ROWS):
            rows = slice(start, start + ROWS)
            part = out[rows]
            if dtype != torch.float32:
                part = self.workspace.take("values", tuple(part.shape), torch.float32)
            part.copy_(codes[rows]).mul_(scales[rows])
            if dtype != torch.float32:
                out[rows] = part
        return out


def product(codes: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Write codes times scales to ``out``, rounded once: on a card one kernel, without a copy."""
    return torch.mul(codes, scales, out=out)
