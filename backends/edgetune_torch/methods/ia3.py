"""IA3: elementwise scales of what projections give, or take."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.ia3 import Ia3, scales_inputs
from edgetune.shape import Linear, ModelShape
from edgetune_torch.adaptation import Adapted
from edgetune_torch.linear import frozen_linear
from edgetune_torch.matrices import Matrix


class Ia3Adaptation(Adapted):
    """Scales the outputs of the targets, of an MLP's output projection the inputs."""

    def __init__(self, spec: Ia3, shape: ModelShape, parameters: Mapping[str, Parameter]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._scales = {
            (target.layer, target.linear.role): self.parameters[f"{target.module}.ia3_l"]
            for target in spec.select(shape)
        }

    def project(
        self, layer: int, linear: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None
    ) -> Tensor:
        """Return the projection, scaled where it is a target."""
        scale = self._scales.get((layer, linear.role))
        if scale is None:
            return frozen_linear(x, matrix, bias)
        flat = scale.flatten().to(x.dtype)
        if scales_inputs(linear):
            return frozen_linear(x * flat, matrix, bias)
        return frozen_linear(x, matrix, bias) * flat
