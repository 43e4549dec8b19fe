"""How a backend's sums become the weights of loss tokens, in the middle of a gradient pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgetune.objectives.base import AnswerKind, DocumentSums, Objective, Rewards, Scored


@dataclass(slots=True)
class Weighing:
    """Scores the micro-batches of a step or of an evaluation, and adds up what they come to.

    ``divergence`` is how far the policy is from the reference, for objectives that ask for it.
    """

    objective: Objective
    divergence: float = 0.0
    loss: float = 0.0
    terms: int = 0
    rewards: Rewards = field(default_factory=Rewards)

    def weights(
        self, kinds: Sequence[AnswerKind], policy: DocumentSums, reference: DocumentSums | None
    ) -> tuple[float, ...]:
        """Return of every document by how much its loss tokens count; adds what it scores.

        The loss of a token is its negative log-probability: its weight is the negative slope.
        """
        return tuple(-slope for slope in self.add(kinds, policy, reference).slopes)

    def add(
        self, kinds: Sequence[AnswerKind], policy: DocumentSums, reference: DocumentSums | None
    ) -> Scored:
        """Score a micro-batch and add it."""
        found = self.objective.scored(kinds, policy, reference, divergence=self.divergence)
        self.loss += found.loss
        self.terms += found.terms
        self.rewards += found.rewards
        return found

    @property
    def metrics(self) -> dict[str, float]:
        """The means over everything that was added."""
        return self.rewards.means(self.terms)
