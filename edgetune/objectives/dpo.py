"""Direct preference optimization (Rafailov et al. 2023, equation 7)."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.objectives.base import Answer, PairObjective, PairTerm
from edgetune.objectives.numbers import sigmoid, softplus
from edgetune.settings.spec import POSITIVE, knob


@dataclass(frozen=True, slots=True)
class DPO(PairObjective):
    """``-log sigmoid(beta (h_chosen - h_rejected))``, h the log-ratio to the reference."""

    beta: float = knob(0.1, "Strength of the pull to the reference.", interval=POSITIVE)

    name = "dpo"
    needs_reference = True

    def pair(self, chosen: Answer, rejected: Answer) -> PairTerm:
        """Return what one pair adds to the loss."""
        rewards = self.beta * chosen.log_ratio, self.beta * rejected.log_ratio
        margin = rewards[0] - rewards[1]
        slope = -self.beta * sigmoid(-margin)
        return PairTerm(softplus(-margin), slope, -slope, *rewards)
