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


class DoraAdaptation(LowRankAdaptation):
    """``m / |W + scale * B A| * (W + scale * B A) x``, the norm a constant (section 4.3).

    The squared norms of W's rows are computed once and kept, those of the sum once for each set
    of tensors: ``|W|^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>`` by row, without forming ``B A``.
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
        y = y * (magnitude / self._norm(key, matrix)).to(y.dtype)
        return y if bias is None else y + bias.to(y.dtype)

    @torch.no_grad()
    def _norm(self, key: Key, matrix: Matrix) -> Tensor:
        """Return the norms (N) of the rows of ``W + scale * B A``."""
        if key not in self._norms:
            (a, b), scale = self.pair(key), self.low_rank.scale
            dense = matrix.dense(torch.float32)
            if key not in self._frozen_squares:
                self._frozen_squares[key] = torch.linalg.vector_norm(dense, dim=1).square()
            cross = ((dense @ a.T) * b).sum(1)
            own = ((b @ (a @ a.T)) * b).sum(1)
            squares = self._frozen_squares[key] + 2 * scale * cross + scale**2 * own
            self._norms[key] = squares.clamp_min(0).sqrt()
        return self._norms[key]
