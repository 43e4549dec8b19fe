"""The pilot: what a run takes, tried before anything is learned, and then undone bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgetune.data.batch import MicroBatch


class StepData(Protocol):
    """The micro-batches of one optimizer step; counts are over the whole world."""

    @property
    def micro_batches(self) -> tuple[MicroBatch, ...]: ...
    @property
    def loss_tokens(self) -> int: ...
    @property
    def terms(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def epoch(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """What a pilot tries: the step with the largest micro-batch of a run, the largest evaluation."""

    step: StepData
    evaluation: MicroBatch | None = None

    @property
    def evaluated(self) -> tuple[MicroBatch, ...]:
        """The micro-batch to evaluate, of the validation rows if there are any; it may be none.

        A rank can have a share of neither.
        """
        if self.evaluation is not None:
            return (self.evaluation,)
        return tuple(sorted(self.step.micro_batches, key=lambda batch: -batch.tokens.size)[:1])


QUICK = 1.0
"""A step of fewer seconds is taken twice: the first one warms caches up."""


def positions(batches: Sequence[MicroBatch]) -> int:
    """Return the tokens and the padding of micro-batches that are learned."""
    return sum(batch.tokens.size for batch in batches if not batch.is_mismatched)
