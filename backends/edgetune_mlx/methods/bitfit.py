"""BitFit: trained biases of projections and norms."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from edgetune.methods.bitfit import BitFit
from edgetune.shape import Linear, ModelShape, NormKind
from edgetune_mlx.adaptation import Adapted
from edgetune_mlx.linear import frozen_linear
from edgetune_mlx.matrices import Matrix
from edgetune_mlx.trained import add_bias, trained_norm


class BitFitAdaptation(Adapted):
    """Adds trained biases where the frozen ones were, or where there were none."""

    def __init__(self, spec: BitFit, shape: ModelShape, parameters: Mapping[str, mx.array]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._names = {
            (target.layer, target.linear.role): f"{target.module}.bias"
            for target in spec.select(shape)
        }

    def project(
        self, layer: int, linear: Linear, x: mx.array, matrix: Matrix, bias: mx.array | None
    ) -> mx.array:
        """Return the projection with its trained bias, if it has one."""
        name = self._names.get((layer, linear.role))
        if name is None:
            return frozen_linear(x, matrix, bias)
        return add_bias(frozen_linear(x, matrix, None), self.parameters[name])

    def norm(
        self,
        layer: int | None,
        role: str,
        x: mx.array,
        kind: NormKind,
        weight: mx.array,
        bias: mx.array | None,
    ) -> mx.array:
        """Return x normalised, with the trained bias if there is one."""
        return trained_norm(self, layer, role, x, kind, weight, bias)
