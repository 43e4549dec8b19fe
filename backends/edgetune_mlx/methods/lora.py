"""LoRA and its kin: a low-rank update beside each targeted projection."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from edgetune.methods.initial import generator
from edgetune.methods.lora import DyLora, Lora, LowRank, constant
from edgetune.shape import Linear, LinearRole, ModelShape
from edgetune_mlx.adaptation import Adapted
from edgetune_mlx.linear import Dropout, frozen_linear, low_rank
from edgetune_mlx.matrices import Matrix

Key = tuple[int, LinearRole]
"""Layer and role of a projection."""


class LowRankAdaptation(Adapted):
    """What LoRA and its kin share: A and B of every target, and the draws of dropout."""

    def __init__(
        self, spec: LowRank, shape: ModelShape, parameters: Mapping[str, mx.array]
    ) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self.low_rank = spec
        self.modules = {
            (target.layer, target.linear.role): target.module for target in spec.select(shape)
        }

    @property
    def draws(self) -> bool:
        """Whether a mask is drawn in this micro-batch."""
        return self._step is not None and self.low_rank.dropout > 0

    def pair(self, key: Key) -> tuple[mx.array, mx.array]:
        """Return A (R, K) and B (N, R) of a target."""
        module = self.modules[key]
        return (
            self.parameters[f"{module}.lora_A.weight"],
            self.parameters[f"{module}.lora_B.weight"],
        )

    def dropout(self, key: Key) -> Dropout | None:
        """Return what a target drops in this micro-batch."""
        if self.low_rank.dropout == 0:
            return None
        drawn = self.key(*key)
        return None if drawn is None else Dropout(self.low_rank.dropout, drawn)


class LoraAdaptation(LowRankAdaptation):
    """Adds ``scale * B A dropout(x)`` to the targets; with PiSSA less what it began as."""

    def __init__(self, spec: Lora, shape: ModelShape, parameters: Mapping[str, mx.array]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self.subtracts = spec.lora_initial == "pissa"

    def project(
        self, layer: int, linear: Linear, x: mx.array, matrix: Matrix, bias: mx.array | None
    ) -> mx.array:
        """Return the projection, with the update where it is a target."""
        y, key = frozen_linear(x, matrix, bias), (layer, linear.role)
        if key not in self.modules:
            return y
        scale, dropout = self.low_rank.scale, self.dropout(key)
        y = y + low_rank(x, *self.pair(key), scale, dropout)
        return y - low_rank(x, *self._start(key), scale, dropout) if self.subtracts else y

    def _start(self, key: Key) -> tuple[mx.array, mx.array]:
        module = self.modules[key]
        return (
            self.parameters[constant(f"{module}.lora_A.weight")],
            self.parameters[constant(f"{module}.lora_B.weight")],
        )


class DyLoraAdaptation(LowRankAdaptation):
    """Computes with the first ranks alone in training, as many as each step draws."""

    def __init__(self, spec: DyLora, shape: ModelShape, parameters: Mapping[str, mx.array]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self.rank = spec.rank

    @property
    def draws(self) -> bool:
        """Whether a rank is drawn in this micro-batch."""
        return self._step is not None

    def drawing(self, step: str, part: int) -> DyLoraAdaptation:
        """Draw the rank of a step, the same for all of its micro-batches."""
        other = super().drawing(step, part)
        other.rank = int(generator("rank", step).integers(1, self.low_rank.rank + 1))
        return other

    def project(
        self, layer: int, linear: Linear, x: mx.array, matrix: Matrix, bias: mx.array | None
    ) -> mx.array:
        """Return the projection, with the update's first ranks where it is a target."""
        y, key = frozen_linear(x, matrix, bias), (layer, linear.role)
        if key not in self.modules:
            return y
        (a, b), rank = self.pair(key), self.rank
        scale = self.low_rank.scale_at(rank)
        return y + low_rank(x, a[:rank], b[:, :rank], scale, self.dropout(key))
