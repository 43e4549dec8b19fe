"""Full fine-tuning: float32 copies of the weights in place of the frozen ones."""

from __future__ import annotations

import mlx.core as mx

from edgetune.shape import Linear, NormKind
from edgetune_mlx.adaptation import Adapted
from edgetune_mlx.linear import frozen_linear
from edgetune_mlx.matrices import Matrix
from edgetune_mlx.trained import add_bias, trained_linear, trained_norm


class FullAdaptation(Adapted):
    """Computes with the trained copies of everything in the trained blocks."""

    def project(
        self, layer: int, linear: Linear, x: mx.array, matrix: Matrix, bias: mx.array | None
    ) -> mx.array:
        """Return the projection by the trained copy, if there is one."""
        name = f"{self.shape.block(layer)}{linear.module}"
        if f"{name}.weight" not in self.parameters:
            return frozen_linear(x, matrix, bias)
        y = trained_linear(x, self.parameters[f"{name}.weight"])
        return add_bias(y, self.parameters[f"{name}.bias"]) if linear.bias else y

    def norm(
        self,
        layer: int | None,
        role: str,
        x: mx.array,
        kind: NormKind,
        weight: mx.array,
        bias: mx.array | None,
    ) -> mx.array:
        """Return x normalised by the trained copy, if there is one."""
        return trained_norm(self, layer, role, x, kind, weight, bias)
