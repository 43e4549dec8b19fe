"""BitFit: trained biases of projections and norms."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.bitfit import BitFit
from edgetune.shape import Linear, ModelShape, NormKind
from edgetune_torch.adaptation import Adapted
from edgetune_torch.linear import frozen_linear
from edgetune_torch.matrices import Matrix
from edgetune_torch.trained import TrainedNorms, add_bias


class BitFitAdaptation(Adapted):
    """Adds trained biases where the frozen ones were, or where there were none."""

    def __init__(
        self, spec: BitFit, shape: ModelShape, parameters: Mapping[str, Parameter]
    ) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._norms = TrainedNorms(self)
        self._biases = {
            (target.layer, target.linear.role): self.parameters[f"{target.module}.bias"]
            for target in spec.select(shape)
        }

    def project(
        self, layer: int, linear: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None
    ) -> Tensor:
        """Return the projection with its trained bias, if it has one."""
        trained = self._biases.get((layer, linear.role))
        if trained is None:
            return frozen_linear(x, matrix, bias)
        return add_bias(frozen_linear(x, matrix, None), trained)

    def norm(
        self,
        layer: int | None,
        role: str,
        x: Tensor,
        kind: NormKind,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Return x normalised, with the trained bias if there is one."""
        return self._norms(layer, role, x, kind, weight, bias)
