"""DyLoRA: LoRA that can be cut to any rank (Valipour et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, ClassVar

from edgetune.methods.initial import generator
from edgetune.methods.lora import Lora, LowRank, pair_of
from edgetune.network.ops import A
from edgetune.shape import Linear

if TYPE_CHECKING:
    from edgetune.methods.adapted import Adapted
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class DyLora(LowRank):
    """LoRA of which any first ranks are a LoRA (Valipour et al. 2023, algorithm 1).

    Each step trains the first ``b`` components alone, ``b`` drawn from 1 to ``rank``, scaled by
    ``alpha / b``. On disk it is plain LoRA of the whole rank.
    """

    kind: ClassVar[str] = "dylora"
    format: ClassVar[str | None] = None
    peft_type: ClassVar[str | None] = None

    @property
    def one_rank_because(self) -> str | None:
        """Why all targets have to have the same rank."""
        return "DyLoRA draws one rank for all targets"

    @property
    def largest_step(self) -> str:
        """A step that draws the whole rank."""
        return next(step for step in map(str, count()) if drawn_rank(step, self.rank) == self.rank)

    @property
    def draws(self) -> bool:
        """Whether a rank is drawn in training: it is."""
        return True

    def project(self, block: Block[A], own: Adapted[A], linear: Linear, x: A) -> A:
        """Return the projection, with the update's first ranks where it is a target."""
        ops, pair = block.ops, pair_of(block, own, linear)
        if pair is None:
            return ops.linear(linear.role, x)
        rank = self.rank if own.step is None else drawn_rank(own.step, self.rank)
        a, b = ops.some_rows(pair[0], slice(rank)), ops.some_columns(pair[1], slice(rank))
        dropout = self.dropped(block, own, linear)
        return ops.lora_linear(linear.role, x, a, b, self.scale_at(rank), dropout)

    def on_disk(self) -> Lora:
        """Return LoRA of the whole rank."""
        return Lora(
            rank=self.rank, alpha=self.alpha, dropout=self.dropout, targets=self.targets,
            layers=self.layers, rslora=self.rslora, modules_to_save=self.modules_to_save,
            modules_rate=self.modules_rate,
        )  # fmt: skip


@lru_cache(maxsize=8)
def drawn_rank(step: str, rank: int) -> int:
    """Return a rank from 1 to ``rank``, a function of the step alone."""
    return int(generator("rank", step).integers(1, rank + 1))
