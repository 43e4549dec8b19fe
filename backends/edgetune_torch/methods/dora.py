"""DoRA: LoRA's direction, normalised by row, times a trained magnitude."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.dora import Dora
from edgetune.shape import Linear, ModelShape
from edgetune_torch.linear import frozen_linear, lora_linear
from edgetune_torch.matrices import Matrix
from edgetune_torch.methods.lora import Key, LowRankAdaptation
from edgetune_torch.precision import product_dtype

ROWS = 128
"""Rows of a matrix that are in float32 at a time for their norms."""


class DoraAdaptation(LowRankAdaptation):
    """``m / |W + scale * B A| * (W + scale * B A) x``, the norm a constant (section 4.3).

    The squared norms of W's rows are computed once and kept, those of the sum once for each set
    of tensors: ``|W|^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>`` by row, without forming ``B A``, in
    float32 for some rows at a time.
    """

    def __init__(self, spec: Dora, shape: ModelShape, parameters: Mapping[str, Parameter]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._frozen_squares: dict[Key, Tensor] = {}
        self._norms: dict[Key, Tensor] = {}

    def seed(self, step: str | None, part: int = 0) -> None:
        """Forget the norms: what they belong to may have changed."""
        super().seed(step, part)
        self._norms.clear()

    def project(
        self, layer: int, linear: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None
    ) -> Tensor:
        """Return the projection, with direction and magnitude adapted where it is a target."""
        key = (layer, linear.role)
        if key not in self.modules:
            return frozen_linear(x, matrix, bias)
        scale, dropout = self.low_rank.scale, self.dropout(key)
        y = lora_linear(x, *self.pair(key), matrix, None, scale, dropout)
        magnitude = self.parameters[f"{self.modules[key]}.lora_magnitude_vector"]
        norms = self._norm(key, matrix, product_dtype(x.dtype, x.device))
        y = y * (magnitude / norms).to(y.dtype)
        return y if bias is None else y + bias.to(y.dtype)

    @torch.no_grad()
    def _norm(self, key: Key, matrix: Matrix, dtype: torch.dtype) -> Tensor:
        """Return the norms (N) of the rows of ``W + scale * B A``, W as it is multiplied."""
        if key not in self._norms:
            (a, b), scale = self.pair(key), self.low_rank.scale
            dense, gram = matrix.dense(dtype), a @ a.T
            spans = [slice(start, start + ROWS) for start in range(0, len(b), ROWS)]
            if key not in self._frozen_squares:
                self._frozen_squares[key] = torch.cat([_squares(dense[rows]) for rows in spans])
            cross = torch.cat([_crossed(dense[rows], a, b[rows]) for rows in spans])
            own = torch.cat([(b[rows] @ gram).mul_(b[rows]).sum(1) for rows in spans])
            squares = self._frozen_squares[key] + 2 * scale * cross + scale**2 * own
            self._norms[key] = squares.clamp_min(0).sqrt()
        return self._norms[key]


def _squares(dense: Tensor) -> Tensor:
    """Return the squared norms of some rows."""
    norms: Tensor = torch.linalg.vector_norm(dense.float(), dim=1)
    return norms.square()


def _crossed(dense: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``<W A^T, B>`` of some rows of W (N, K) and B (N, R)."""
    return (dense.float() @ a.T).mul_(b).sum(1)
