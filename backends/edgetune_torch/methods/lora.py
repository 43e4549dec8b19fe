"""LoRA: a low-rank update beside each targeted projection."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.lora import Lora
from edgetune.shape import Linear, ModelShape
from edgetune_torch.adaptation import Adaptation
from edgetune_torch.linear import Dropout, frozen_linear, lora_linear
from edgetune_torch.matrices import Matrix


class LoraAdaptation(Adaptation):
    """Adds ``scale * B A dropout(x)`` to the targeted projections."""

    def __init__(self, spec: Lora, shape: ModelShape, parameters: Mapping[str, Parameter]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(parameters)
        self.spec = spec
        self._seed: str | None = None
        self._layers = [target.layer for target in spec.select(shape)]
        self._pairs = {
            (target.layer, target.linear.role): (
                self.parameters[f"{target.module}.lora_A.weight"],
                self.parameters[f"{target.module}.lora_B.weight"],
            )
            for target in spec.select(shape)
        }

    def seed(self, seed: str | None) -> None:
        """Draw dropout masks from ``seed``; None drops nothing (evaluation)."""
        self._seed = seed

    def first_layer(self) -> int:
        """Return the first block with a target."""
        return min(self._layers)

    def project(
        self, layer: int, linear: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None
    ) -> Tensor:
        """Return the projection, with the update where it is a target."""
        pair = self._pairs.get((layer, linear.role))
        if pair is None:
            return frozen_linear(x, matrix, bias)
        return lora_linear(x, *pair, matrix, bias, self.spec.scale, self._dropout(layer, linear))

    def _dropout(self, layer: int, linear: Linear) -> Dropout | None:
        if self._seed is None or self.spec.dropout == 0:
            return None
        key = f"{self._seed}:{layer}:{linear.role}".encode()
        return Dropout(self.spec.dropout, int.from_bytes(hashlib.sha256(key).digest()[:7], "big"))
