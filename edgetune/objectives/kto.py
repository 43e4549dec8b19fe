"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, equations 7 and 8): answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgetune.objectives.base import (
    Answer,
    AnswerKind,
    DocumentSums,
    Objective,
    Rewards,
    Scored,
    answers_of,
)
from edgetune.objectives.numbers import sigmoid
from edgetune.settings.spec import NOT_NEGATIVE, POSITIVE, knob


@dataclass(frozen=True, slots=True)
class KTO(Objective):
    """``w (1 - sigmoid(beta (h - z)))`` of a desirable answer, ``w (1 - sigmoid(beta (z - h)))`` else.

    h is the log-ratio to the reference; z, which no gradient goes through, is how far the policy is
    from the reference: the mean of h over answers to other prompts, not below 0.
    """

    beta: float = knob(0.1, "Strength of the pull to the reference.", interval=POSITIVE)
    desirable_weight: float = knob(1.0, "Weight of desirable answers.", interval=NOT_NEGATIVE)
    undesirable_weight: float = knob(1.0, "Weight of undesirable answers.", interval=NOT_NEGATIVE)

    name = "kto"
    rows = "unpaired"
    needs_reference = True
    needs_mismatched = True
    documents = 2

    def answer(self, answer: Answer, divergence: float, *, chosen: bool) -> tuple[float, float]:
        """Return what one answer adds to the loss, and the derivative by its log-probability."""
        sign, weight = (1, self.desirable_weight) if chosen else (-1, self.undesirable_weight)
        excess = sign * self.beta * (answer.log_ratio - divergence)
        doubt = sigmoid(-excess)
        return weight * doubt, -sign * self.beta * weight * doubt * sigmoid(excess)

    def scored(
        self,
        kinds: Sequence[AnswerKind],
        policy: DocumentSums,
        reference: DocumentSums | None,
        *,
        divergence: float = 0.0,
    ) -> Scored:
        """Return what the answers of a micro-batch come to."""
        answers = list(zip(kinds, answers_of(policy, reference), strict=True))
        terms = [self.answer(each, divergence, chosen=kind == "chosen") for kind, each in answers]
        chosen, rejected = (
            [self.beta * each.log_ratio for kind, each in answers if kind == wanted]
            for wanted in ("chosen", "rejected")
        )
        point = self.beta * divergence
        rewards = Rewards(
            chosen=sum(chosen),
            chosen_count=len(chosen),
            rejected=sum(rejected),
            rejected_count=len(rejected),
            right=sum(x > point for x in chosen) + sum(x < point for x in rejected),
            kl=divergence,
        )
        slopes = tuple(slope for _, slope in terms)
        return Scored(sum(loss for loss, _ in terms), slopes, len(terms), rewards)
