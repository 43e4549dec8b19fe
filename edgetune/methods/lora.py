"""LoRA: ``h = W x + scale * B A x`` with A random and B zero (Hu et al. 2021, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from edgetune.errors import UsageError
from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.targets import Target, select
from edgetune.shape import ModelShape
from edgetune.spec import knob


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora(Method):
    """Low-rank updates of the targeted projections; A is (rank, inputs), B (outputs, rank)."""

    kind: ClassVar[str] = "lora"
    mergeable: ClassVar[bool] = True

    rank: int = knob(16, "Rank of the update (default: by the number of rows).")
    alpha: float | None = knob(None, "Numerator of the update's scale (default: twice the rank).")
    dropout: float = knob(0.0, "Share of the update's inputs dropped in training.")
    targets: tuple[str, ...] = knob(
        ("all-linear",), "Adapted projections: a group, names or globs, comma-separated."
    )
    rslora: bool = knob(False, "Scale by alpha / sqrt(rank) instead of alpha / rank.")

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.rank < 1:
            raise UsageError(f"--rank must be 1 or more; found {self.rank}.")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"--dropout must be from 0 to below 1; found {self.dropout}.")

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / (sqrt(self.rank) if self.rslora else self.rank)

    def select(self, shape: ModelShape) -> list[Target]:
        """Return the adapted projections of a model."""
        return select(shape, self.targets)

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return A and B of every target: ``rank * (inputs + outputs)`` parameters each."""
        return tuple(tensor for target in self.select(shape) for tensor in self._pair(target))

    def _pair(self, target: Target) -> tuple[AdapterTensor, AdapterTensor]:
        linear = target.linear
        return (
            AdapterTensor(
                module=target.module,
                part="lora_A",
                shape=(self.rank, linear.inputs),
                initial="kaiming-uniform",
            ),
            AdapterTensor(
                module=target.module,
                part="lora_B",
                shape=(linear.outputs, self.rank),
                initial="zeros",
            ),
        )
