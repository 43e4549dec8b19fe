"""Full fine-tuning: float32 copies of the weights in place of the frozen ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.full import Full
from edgetune.shape import Linear, ModelShape, NormKind
from edgetune_torch.adaptation import Adapted
from edgetune_torch.linear import frozen_linear
from edgetune_torch.matrices import Matrix
from edgetune_torch.trained import TrainedNorms, add_bias, trained_linear


class FullAdaptation(Adapted):
    """Computes with the trained copies of everything in the trained blocks."""

    def __init__(self, spec: Full, shape: ModelShape, parameters: Mapping[str, Parameter]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._norms = TrainedNorms(self)

    def project(
        self, layer: int, linear: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None
    ) -> Tensor:
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
        x: Tensor,
        kind: NormKind,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Return x normalised by the trained copy, if there is one."""
        return self._norms(layer, role, x, kind, weight, bias)
