"""Identity preference optimization (Azar et al. 2023, equation 17).

The log-ratios are means over the tokens of an answer, as in TRL, so that long answers do not set
the scale alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.objectives.base import Answer, PairObjective, PairTerm
from edgetune.settings.spec import POSITIVE, knob


@dataclass(frozen=True, slots=True)
class IPO(PairObjective):
    """``(h_chosen - h_rejected - 1 / (2 beta))^2``, h the mean log-ratio of a token."""

    beta: float = knob(0.1, "The paper's tau: margins go to 1 / (2 beta).", interval=POSITIVE)

    name = "ipo"
    needs_reference = True

    def pair(self, chosen: Answer, rejected: Answer) -> PairTerm:
        """Return what one pair adds to the loss."""
        ratios = chosen.log_ratio / chosen.tokens, rejected.log_ratio / rejected.tokens
        excess = ratios[0] - ratios[1] - 1 / (2 * self.beta)
        return PairTerm(
            loss=excess * excess,
            chosen_slope=2 * excess / chosen.tokens,
            rejected_slope=-2 * excess / rejected.tokens,
            chosen_reward=self.beta * ratios[0],
            rejected_reward=self.beta * ratios[1],
        )
