"""LoRA of which B alone is trained (LoRA-FA, Zhang et al. 2023, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from edgetune.methods.base import AdapterTensor
from edgetune.methods.lora import Lora, LowRank, pair_of
from edgetune.methods.targets import Target
from edgetune.network.ops import A
from edgetune.shape import Linear, ModelShape

if TYPE_CHECKING:
    from edgetune.methods.adapted import Adapted
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFa(LowRank):
    """A stays at its random start, so that ``A x`` is kept for the way back and x is not.

    On disk it is plain LoRA: A is in the file, and resuming takes it from there.
    """

    kind: ClassVar[str] = "lora-fa"
    with_experts: ClassVar[bool] = True
    fixed: ClassVar[bool] = True
    format: ClassVar[str | None] = None
    peft_type: ClassVar[str | None] = None
    rate_factor: ClassVar[float] = 5.0  # B alone moves; Hayou et al. 2024 want it faster than A

    def of_target(self, target: Target) -> tuple[AdapterTensor, ...]:
        """Return A, a constant, and B: ``rank * outputs`` parameters."""
        a, b = self.plain(target)
        return replace(a, trained=False), b

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Refuse a rate of B against that of A, which has none."""
        found = LowRank.refusals(self, shape, context=context, quantization=quantization)
        if self.lora_plus is None:
            return found
        return [
            *found,
            "--method lora-fa trains B alone: leave out --lora-plus, or set --learning-rate.",
        ]

    def project(self, block: Block[A], own: Adapted[A], linear: Linear, x: A) -> A:
        """Return the projection, with the update where it is a target."""
        pair = pair_of(block, own, linear)
        if pair is None:
            return block.ops.linear(linear.role, x)
        scale, dropout = self.scale_at_place(block, linear), self.dropped(block, own, linear)
        return block.ops.lora_linear(linear.role, x, *pair, scale, dropout, fixed=self.fixed)

    def on_disk(self) -> Lora:
        """Return LoRA with the same numbers."""
        return Lora(
            rank=self.rank, alpha=self.alpha, dropout=self.dropout, targets=self.targets,
            layers=self.layers, rslora=self.rslora, rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern, modules_to_save=self.modules_to_save,
            modules_rate=self.modules_rate,
        )  # fmt: skip
