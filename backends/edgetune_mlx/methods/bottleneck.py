"""Bottleneck adapters behind or beside the halves of a block."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from edgetune.methods.bottleneck import Bottleneck, adapter_name
from edgetune.shape import ModelShape, NormKind
from edgetune_mlx.adaptation import Adapted, Sublayer
from edgetune_mlx.linear import recomputed
from edgetune_mlx.pointwise import activation
from edgetune_mlx.trained import add_bias, trained_linear, trained_norm


class BottleneckAdaptation(Adapted):
    """Adds ``s f(h W_down) W_up`` to a half's output; h is that output, or the half's input."""

    def __init__(
        self, spec: Bottleneck, shape: ModelShape, parameters: Mapping[str, mx.array]
    ) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._bottleneck = spec

    def sublayer(self, layer: int, which: Sublayer, x: mx.array, out: mx.array) -> mx.array:
        """Return the half's output with that of its adapter, if it has one."""
        name, spec = adapter_name(self.shape, layer, which), self._bottleneck
        if f"{name}.down.weight" not in self.parameters:
            return out
        inner = self._linear(x if spec.adapter_kind == "parallel" else out, f"{name}.down")
        inner = recomputed(lambda x: activation(x, spec.adapter_activation))(inner)
        return out + self._linear(inner, f"{name}.up") * spec.scale

    def norm(
        self,
        layer: int | None,
        role: str,
        x: mx.array,
        kind: NormKind,
        weight: mx.array,
        bias: mx.array | None,
    ) -> mx.array:
        """Return x normalised, by the trained copy if there is one."""
        return trained_norm(self, layer, role, x, kind, weight, bias)

    def _linear(self, x: mx.array, name: str) -> mx.array:
        y = trained_linear(x, self.parameters[f"{name}.weight"])
        return add_bias(y, self.parameters[f"{name}.bias"])
