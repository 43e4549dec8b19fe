"""LoRA and its kin: a low-rank update beside each targeted projection."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.initial import generator
from edgetune.methods.lora import DyLora, Lora, LowRank, constant
from edgetune.shape import Linear, LinearRole, ModelShape
from edgetune_torch.adaptation import Adapted
from edgetune_torch.linear import Dropout, frozen_linear, lora_linear
from edgetune_torch.matrices import Matrix

Key = tuple[int, LinearRole]
"""Layer and role of a projection."""


class LowRankAdaptation(Adapted):
    """What LoRA and its kin share: A and B of every target, and the draws of dropout."""

    def __init__(
        self, spec: LowRank, shape: ModelShape, parameters: Mapping[str, Parameter]
    ) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self.low_rank = spec
        self.modules = {
            (target.layer, target.linear.role): target.module for target in spec.select(shape)
        }
        self._seed: str | None = None

    def seed(self, step: str | None, part: int = 0) -> None:
        """Draw dropout masks anew in every micro-batch; None drops nothing (evaluation)."""
        self._seed = None if step is None else f"{step}:{part}"

    def pair(self, key: Key) -> tuple[Tensor, Tensor]:
        """Return A (R, K) and B (N, R) of a target."""
        module = self.modules[key]
        return (
            self.parameters[f"{module}.lora_A.weight"],
            self.parameters[f"{module}.lora_B.weight"],
        )

    def dropout(self, key: Key) -> Dropout | None:
        """Return what a target drops in this micro-batch."""
        share = self.low_rank.dropout
        if self._seed is None or share == 0:
            return None
        name = f"{self._seed}:{key[0]}:{key[1]}".encode()
        return Dropout(share, int.from_bytes(hashlib.sha256(name).digest()[:7], "big"))


class LoraAdaptation(LowRankAdaptation):
    """Adds ``scale * B A dropout(x)`` to the targets; with PiSSA less what it began as."""

    def __init__(self, spec: Lora, shape: ModelShape, parameters: Mapping[str, Parameter]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self.subtracts = spec.lora_initial == "pissa"

    def project(
        self, layer: int, linear: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None
    ) -> Tensor:
        """Return the projection, with the update where it is a target."""
        key = (layer, linear.role)
        if key not in self.modules:
            return frozen_linear(x, matrix, bias)
        scale, dropout = self.low_rank.scale, self.dropout(key)
        y = lora_linear(x, *self.pair(key), matrix, bias, scale, dropout)
        return y - self._beginning(key, x, dropout) if self.subtracts else y

    def _beginning(self, key: Key, x: Tensor, dropout: Dropout | None) -> Tensor:
        """Return ``scale * B0 A0 dropout(x)``."""
        module = self.modules[key]
        a = self.parameters[constant(f"{module}.lora_A.weight")].to(x.dtype)
        b = self.parameters[constant(f"{module}.lora_B.weight")].to(x.dtype)
        if dropout is not None:
            x = x * dropout.mask(x.flatten(0, -2)).view(x.shape) / (1 - dropout.share)
        return (x @ a.T) @ b.T * self.low_rank.scale


class DyLoraAdaptation(LowRankAdaptation):
    """Computes with the first ranks alone in training, as many as each step draws."""

    def __init__(
        self, spec: DyLora, shape: ModelShape, parameters: Mapping[str, Parameter]
    ) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self.rank = spec.rank

    def seed(self, step: str | None, part: int = 0) -> None:
        """Draw the rank of a step, the same for all of its micro-batches; None takes all."""
        super().seed(step, part)
        whole = self.low_rank.rank
        self.rank = whole if step is None else drawn_rank(step, whole)

    def project(
        self, layer: int, linear: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None
    ) -> Tensor:
        """Return the projection, with the update's first ranks where it is a target."""
        key = (layer, linear.role)
        if key not in self.modules:
            return frozen_linear(x, matrix, bias)
        (a, b), rank = self.pair(key), self.rank
        scale = self.low_rank.scale_at(rank)
        return lora_linear(x, a[:rank], b[:, :rank], matrix, bias, scale, self.dropout(key))


def drawn_rank(step: str, rank: int) -> int:
    """Return a rank from 1 to ``rank``, a function of the step alone."""
    return int(generator("rank", step).integers(1, rank + 1))
