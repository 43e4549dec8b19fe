"""Odds ratio preference optimization (Hong et al. 2024, equations 6 and 7): no reference."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.objectives.base import Answer, PairObjective, PairTerm
from edgetune.objectives.numbers import log_odds, log_odds_slope, sigmoid, softplus
from edgetune.settings.spec import POSITIVE, knob


@dataclass(frozen=True, slots=True)
class ORPO(PairObjective):
    """``-m_chosen - beta log sigmoid(log odds of chosen - log odds of rejected)``.

    The probability of an answer is that of its tokens on average, exp(m): the loss of plain
    training on chosen answers with a term that tells them from the rejected ones.
    """

    beta: float = knob(0.1, "The paper's lambda: weight of the odds ratio.", interval=POSITIVE)

    name = "orpo"
    needs_reference = False

    def pair(self, chosen: Answer, rejected: Answer) -> PairTerm:
        """Return what one pair adds to the loss."""
        ratio = log_odds(chosen.mean) - log_odds(rejected.mean)
        slope = self.beta * sigmoid(-ratio)
        return PairTerm(
            loss=-chosen.mean + self.beta * softplus(-ratio),
            chosen_slope=-(1 + slope * log_odds_slope(chosen.mean)) / chosen.tokens,
            rejected_slope=slope * log_odds_slope(rejected.mean) / rejected.tokens,
            chosen_reward=self.beta * chosen.mean,
            rejected_reward=self.beta * rejected.mean,
        )
