"""Bottleneck adapters behind or beside the halves of a block."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.bottleneck import Bottleneck, adapter_name
from edgetune.shape import ModelShape, NormKind
from edgetune_torch.adaptation import Adapted, Sublayer
from edgetune_torch.pointwise import activation
from edgetune_torch.trained import TrainedNorms, add_bias


class BottleneckAdaptation(Adapted):
    """Adds ``s f(h W_down) W_up`` to a half's output; h is that output, or the half's input."""

    def __init__(
        self, spec: Bottleneck, shape: ModelShape, parameters: Mapping[str, Parameter]
    ) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._bottleneck = spec
        self._norms = TrainedNorms(self)

    def sublayer(self, layer: int, which: Sublayer, x: Tensor, out: Tensor) -> Tensor:
        """Return the half's output with that of its adapter, if it has one."""
        name = adapter_name(self.shape, layer, which)
        if f"{name}.down.weight" not in self.parameters:
            return out
        source = x if self._bottleneck.adapter_kind == "parallel" else out
        inner = self._linear(source, f"{name}.down")
        inner = activation(inner, self._bottleneck.adapter_activation)
        return out + self._linear(inner, f"{name}.up") * self._bottleneck.scale

    def norm(
        self,
        layer: int | None,
        role: str,
        x: Tensor,
        kind: NormKind,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Return x normalised, by the trained copy if there is one."""
        return self._norms(layer, role, x, kind, weight, bias)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.parameters[f"{name}.weight"].to(x.dtype)
        return add_bias(x @ weight.T, self.parameters[f"{name}.bias"])
