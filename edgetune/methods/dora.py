"""DoRA: a direction that LoRA turns and a magnitude of its own (Liu et al. 2024, eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgetune.methods.base import AdapterTensor, Footprint
from edgetune.methods.initial import RowNorms
from edgetune.methods.lora import LowRank
from edgetune.methods.targets import Target
from edgetune.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Dora(LowRank):
    """``W' = m * (W + scale * B A) / |W + scale * B A|`` by output row, m starting at ``|W|``."""

    kind: ClassVar[str] = "dora"

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return A, B and m of every target: LoRA's parameters and ``outputs`` more."""
        return tuple(tensor for target in self.select(shape) for tensor in self._three(target))

    def footprint(self, shape: ModelShape, layer: int) -> Footprint:
        """Return that the outputs of the targets are scaled."""
        return Footprint(outputs=frozenset(role for role, _ in self.ranks(shape)[layer]))

    def constants(self, shape: ModelShape) -> int:
        """Return the norms of the targets' rows, the frozen ones' squares, and the ratios to m."""
        return 5 * sum(target.linear.outputs for target in self.select(shape))

    def _three(self, target: Target) -> tuple[AdapterTensor, ...]:
        magnitude = AdapterTensor(
            name=f"{target.module}.lora_magnitude_vector",
            shape=(target.linear.outputs,),
            initial=RowNorms(f"{target.module}.weight"),
        )
        return (*self.plain(target), magnitude)
