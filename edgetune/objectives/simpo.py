"""Simple preference optimization (Meng et al. 2024, equation 6): no reference."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.objectives.base import Answer, PairObjective, PairTerm
from edgetune.objectives.numbers import sigmoid, softplus
from edgetune.settings.spec import NOT_NEGATIVE, POSITIVE, knob


@dataclass(frozen=True, slots=True)
class SimPO(PairObjective):
    """``-log sigmoid(beta (m_chosen - m_rejected) - margin)``, m the mean log-probability."""

    beta: float = knob(2.0, "Scale of the rewards.", interval=POSITIVE)
    margin: float = knob(1.0, "Reward that is wanted between the two.", interval=NOT_NEGATIVE)

    name = "simpo"
    needs_reference = False

    def pair(self, chosen: Answer, rejected: Answer) -> PairTerm:
        """Return what one pair adds to the loss."""
        rewards = self.beta * chosen.mean, self.beta * rejected.mean
        excess = rewards[0] - rewards[1] - self.margin
        slope = -self.beta * sigmoid(-excess)
        return PairTerm(
            softplus(-excess), slope / chosen.tokens, -slope / rejected.tokens, *rewards
        )
