"""From the losses of tokens to those of answers, and from the weights of answers back to tokens.

N loss tokens of a micro-batch, one row after another; D documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgetune.data.batch import MicroBatch
from edgetune.objectives import DocumentSums, Objective, Weighing

Losses = NDArray[np.float32]
Weigh = Callable[[Losses], Losses]
"""From the losses of loss tokens (N,) to how much each of them counts (N,)."""


def document_sums(batch: MicroBatch, losses: Losses) -> DocumentSums:
    """Return what the documents of a micro-batch score, added up in float64."""
    owners, count = batch.loss_documents(), sum(map(len, batch.documents))
    sums = np.bincount(owners, weights=losses.astype(np.float64), minlength=count)
    tokens = np.bincount(owners, minlength=count)
    return DocumentSums(tuple((-sums).tolist()), tuple(tokens.tolist()))


@dataclass(slots=True)
class Scoring:
    """The micro-batches of a step or an evaluation under an objective over answers.

    ``reference`` computes the losses of a micro-batch's loss tokens without the adapter.
    """

    objective: Objective
    reference: Callable[[MicroBatch], Losses]
    total: Weighing = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.total = Weighing(self.objective)

    def weigh(self, batch: MicroBatch) -> Weigh:
        """Return what weighs the loss tokens of a micro-batch in its gradient pass.

        The reference is computed now, before that pass holds anything.
        """
        reference = self._compared(batch)

        def weigh(losses: Losses) -> Losses:
            policy = document_sums(batch, losses)
            weights = self.total.weights(batch.kinds, policy, reference)
            return np.array(weights, np.float32)[batch.loss_documents()]

        return weigh

    def evaluate(self, batch: MicroBatch, losses: Losses, *, is_base: bool) -> None:
        """Add a micro-batch whose loss tokens have these losses (N,), ``is_base`` by the base."""
        policy = document_sums(batch, losses)
        self.total.add(batch.kinds, policy, policy if is_base else self._compared(batch))

    def _compared(self, batch: MicroBatch) -> DocumentSums | None:
        if not self.objective.needs_reference:
            return None
        return document_sums(batch, self.reference(batch))
