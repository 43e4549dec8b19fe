"""From the losses of tokens to those of answers, and from the weights of answers back to tokens.

N loss tokens of a micro-batch, one row after another; D documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import fsum

import numpy as np
from numpy.typing import NDArray

from edgetune.data.batch import MicroBatch
from edgetune.objectives import AnswerKind, DocumentSums, Objective, Scored, Weighing

Losses = NDArray[np.float32]
Weigh = Callable[[Losses], Losses]
"""From the losses of loss tokens (N,) to how much each of them counts (N,)."""


def document_sums(batch: MicroBatch, losses: Losses) -> DocumentSums:
    """Return what the documents of a micro-batch score, added up in float64."""
    owners, count = batch.loss_documents(), sum(map(len, batch.documents))
    sums = np.bincount(owners, weights=losses.astype(np.float64), minlength=count)
    tokens = np.bincount(owners, minlength=count)
    return DocumentSums(tuple((-sums).tolist()), tuple(tokens.tolist()))


ComputeLosses = Callable[[MicroBatch], Losses]
"""From a micro-batch to the losses of its loss tokens (N,)."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Documents of micro-batches, scored by the policy and by the reference.

    They wait for the others of an evaluation where a loss depends on all of them.
    """

    objective: Objective
    kinds: tuple[AnswerKind, ...]
    policy: DocumentSums
    reference: DocumentSums

    def __add__(self, other: Compared) -> Compared:
        """Return the documents of both."""
        return Compared(
            self.objective,
            self.kinds + other.kinds,
            self.policy + other.policy,
            self.reference + other.reference,
        )

    @property
    def terms(self) -> int:
        """Documents that are terms of the loss."""
        return len(self.kinds) - self.kinds.count("mismatched")

    def divergence(self) -> float:
        """Return the mean log-ratio of mismatched answers, not below 0; 0 without any.

        It is an estimate from below of the policy's divergence from the reference (Ethayarajh et
        al. 2024, section 4.1).
        """
        ratios = [
            policy - reference
            for kind, policy, reference in zip(
                self.kinds, self.policy.log_probs, self.reference.log_probs, strict=True
            )
            if kind == "mismatched"
        ]
        return max(0.0, fsum(ratios) / len(ratios)) if ratios else 0.0

    def scored(self) -> Scored:
        """Return what the objective says of all that are terms of the loss."""
        own = [n for n, kind in enumerate(self.kinds) if kind != "mismatched"]
        return self.objective.scored(
            [self.kinds[n] for n in own],
            self.policy.of(own),
            self.reference.of(own),
            divergence=self.divergence(),
        )


@dataclass(slots=True)
class Scoring:
    """The micro-batches of a step or an evaluation under an objective over answers.

    ``reference`` computes the losses of a micro-batch's loss tokens without the adapter.
    """

    objective: Objective
    reference: ComputeLosses
    total: Weighing = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.total = Weighing(self.objective)

    def begin(self, batches: Sequence[MicroBatch], policy: ComputeLosses) -> Sequence[MicroBatch]:
        """Measure the divergence of a step, before its first gradient; return what is learned.

        ``policy`` computes losses with the adapter as it is now, without dropout.
        """
        mismatched = [batch for batch in batches if batch.is_mismatched]
        if mismatched:
            parts = [self.compared(each, policy(each), is_base=False) for each in mismatched]
            self.total.divergence = reduce(Compared.__add__, parts).divergence()
        return [batch for batch in batches if not batch.is_mismatched]

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

    def compared(self, batch: MicroBatch, losses: Losses, *, is_base: bool) -> Compared:
        """Return a micro-batch with these losses (N,) beside the reference, ``is_base`` by itself."""
        policy = document_sums(batch, losses)
        reference = policy if is_base else document_sums(batch, self.reference(batch))
        return Compared(self.objective, batch.kinds, policy, reference)

    def _compared(self, batch: MicroBatch) -> DocumentSums | None:
        if not self.objective.needs_reference:
            return None
        return document_sums(batch, self.reference(batch))
