"""IA3: elementwise scales of what projections give, or take."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from edgetune.methods.ia3 import Ia3, scales_inputs
from edgetune.shape import Linear, ModelShape
from edgetune_mlx.adaptation import Adapted
from edgetune_mlx.linear import frozen_linear
from edgetune_mlx.matrices import Matrix


class Ia3Adaptation(Adapted):
    """Scales the outputs of the targets, of an MLP's output projection the inputs."""

    def __init__(self, spec: Ia3, shape: ModelShape, parameters: Mapping[str, mx.array]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._names = {
            (target.layer, target.linear.role): f"{target.module}.ia3_l"
            for target in spec.select(shape)
        }

    def project(
        self, layer: int, linear: Linear, x: mx.array, matrix: Matrix, bias: mx.array | None
    ) -> mx.array:
        """Return the projection, scaled where it is a target."""
        name = self._names.get((layer, linear.role))
        if name is None:
            return frozen_linear(x, matrix, bias)
        scale = self.parameters[name].flatten().astype(x.dtype)
        if scales_inputs(linear):
            return frozen_linear(x * scale, matrix, bias)
        return frozen_linear(x, matrix, bias) * scale
