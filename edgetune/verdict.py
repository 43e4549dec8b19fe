"""What a run came to, in a sentence: what it learned, what it forgot, what to try next.

>>> facts = Facts(
...     held_out=Compared(base_loss=3.0, loss=1.0, count=40),
...     neutral=Compared(base_loss=3.5, loss=3.51, count=1500),
...     evaluations=((10, 1.4), (20, 1.0)), steps=20, training=(1.1, 0.9), trained=360,
... )
>>> print(judged(facts).sentence)
It learned: validation loss 3.0000 to 1.0000 on 40 rows. It forgot nothing to speak of: perplexity on \
neutral text 33.12 to 33.45 (+1.0 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean
from typing import Final, Literal

from edgetune.cautions import VERY_FEW_ROWS, gap_caution, row_cautions

Outcome = Literal["learned", "learned in part", "learned little", "did not help", "unknown"]
"""``learned in part``: the validation loss fell, but no sampled answer is right yet."""

LITTLE: Final = 0.02
"""Share of the base's loss below which a gain is called little."""

CLOSE: Final = 0.5
"""Token F1 from which answers that are not exactly as expected are close to it."""

NEARER: Final = 0.1
"""By how much their token F1 must be above the base's, to be nearer than its answers."""

FORGOT: Final = (
    (0.0, "nothing"), (0.02, "nothing to speak of"), (0.10, "a little"), (0.50, "some"),
)  # fmt: skip
"""Up to which rise of the perplexity on neutral text what is said; above all of them: much."""

FORGETS: Final = 0.10
"""From which rise on there is advice against it."""

FOREIGN: Final = 1000.0
"""Perplexity of a base that does not predict the neutral text in the first place."""

EARLY: Final = 0.7
"""A best evaluation before this share of the steps means that fewer would have done."""

LATE: Final = 0.75
"""The evaluation that the last one is held against came at this share of the steps at the latest:
near the end the learning rate is too low for losses to fall."""

STILL: Final = 0.05
"""Share by which the last evaluation must be lower than that one to be called a fall."""

STILL_IMPROVED: Final = "Validation still improved at the end: more --epochs may help."


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Mean losses of the base and of the tuned model on ``count`` rows, or tokens of a text."""

    base_loss: float
    loss: float
    count: int

    @property
    def rise(self) -> float:
        """How much the perplexity rose, as a share of the base's; negative: it fell."""
        return exp(min(self.loss - self.base_loss, 700.0)) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How ``count`` held-out rows were answered: how many exactly as expected, and the token F1."""

    count: int
    right: int
    base_right: int
    token_f1: float
    base_token_f1: float

    @property
    def show_it(self) -> bool:
        """Whether they show that something was learned: one is right, or all are close now."""
        return self.right > 0 or self.token_f1 >= max(CLOSE, self.base_token_f1 + NEARER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a verdict is about.

    ``evaluations`` are steps and their validation losses, without the base's; ``training`` the
    losses of the steps before the best of them, or the last ones. ``trained`` counts rows.
    ``perplexities`` says whether losses are means over tokens. ``answers`` are those to a few of the
    held-out rows, None if none was asked that has one right answer.
    """

    held_out: Compared | None
    neutral: Compared | None
    evaluations: Sequence[tuple[int, float]]
    steps: int
    training: Sequence[float]
    trained: int
    perplexities: bool = True
    answers: Answered | None = None

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the lowest validation loss, and that loss."""
        return min(self.evaluations, key=lambda one: one[1], default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A sentence on a run and what to try; ``improved_until`` is the step of the best evaluation."""

    outcome: Outcome
    sentence: str
    advice: tuple[str, ...]
    improved_until: int | None


def judged(facts: Facts) -> Verdict:
    """Return the verdict on a run."""
    outcome = _outcome(facts.held_out, facts.answers)
    best = facts.best
    return Verdict(
        outcome=outcome,
        sentence=" ".join(filter(None, (_learned(facts, outcome), _forgotten(facts.neutral)))),
        advice=tuple(_advice(facts, outcome)),
        improved_until=best[0] if best and outcome != "did not help" else None,
    )


def _outcome(held_out: Compared | None, answers: Answered | None) -> Outcome:
    if held_out is None:
        return "unknown"
    gain = held_out.base_loss - held_out.loss
    if gain <= 0:
        return "did not help"
    if gain <= LITTLE * abs(held_out.base_loss):
        return "learned little"
    return "learned" if answers is None or answers.show_it else "learned in part"


def _learned(facts: Facts, outcome: Outcome) -> str:
    found = facts.held_out
    if found is None:
        end = f" The training loss ended at {fmean(facts.training):.4f}." if facts.training else ""
        return f"Whether it learned cannot be said: no rows were held out.{end}"
    said = f"validation loss {found.base_loss:.4f} to {found.loss:.4f} on {_rows(found.count)}"
    if facts.answers is not None:
        said += f"; {_answered(facts.answers)}"
    match outcome:
        case "did not help":
            return f"It did not help: {said}."
        case "learned little":
            return f"It learned little: {said}."
        case "learned in part":
            return f"It learned in part, but no sampled answer is as expected yet: {said}."
        case _:
            return f"It learned: {said}."


def _answered(answers: Answered) -> str:
    """Return how many sampled answers are right, and how close they are if not all of them are.

    >>> _answered(Answered(count=3, right=0, base_right=0, token_f1=0.25, base_token_f1=0.1))
    '0 of 3 sampled answers exactly right (base: 0), token F1 0.25 (base: 0.10)'
    """
    each = f"{answers.right} of {answers.count} sampled answers exactly right"
    said = f"{each} (base: {answers.base_right})"
    if answers.right == answers.count:
        return said
    return f"{said}, token F1 {answers.token_f1:.2f} (base: {answers.base_token_f1:.2f})"


def _forgotten(neutral: Compared | None) -> str:
    if neutral is None:
        return ""
    how = next((word for limit, word in FORGOT if neutral.rise <= limit), "much")
    before, after = (exp(min(loss, 700.0)) for loss in (neutral.base_loss, neutral.loss))
    if before > FOREIGN:
        return (
            "What it forgot cannot be said: the base model does not predict neutral text in the "
            f"first place (perplexity {before:,.0f}, now {after:,.0f})."
        )
    said = f"perplexity on neutral text {before:,.2f} to {after:,.2f} ({100 * neutral.rise:+.1f} %)"
    return f"It forgot {how}: {said}."


def _advice(facts: Facts, outcome: Outcome) -> list[str]:
    """Return what to try, the most important first."""
    found: list[str] = []
    held_out = facts.held_out.count if facts.held_out else 0
    if outcome == "did not help":
        found.append(
            "A lower --learning-rate, or other rows: `edgetune data check FILE` shows what is "
            "learned of each."
        )
    found += row_cautions(facts.trained, held_out)
    long = False  # whether training went on for too long: then no advice may ask for more epochs
    if outcome != "did not help" and (best := facts.best):
        of_length = _on_length(facts, best[0])
        if gap := gap_caution(facts.training, best[1]):
            found.append(gap)
            of_length = [said for said in of_length if said != STILL_IMPROVED]
        found += of_length
        long = gap is not None or (bool(of_length) and STILL_IMPROVED not in of_length)
    longer = "A" if long else "More --epochs or a"
    if _forgets(facts.neutral):
        fewer = "" if STILL_IMPROVED in found else "fewer --epochs, "
        found.append(
            f"To forget less: {fewer}a lower --learning-rate or a smaller --rank; some rows of "
            "general text among yours help, too."
        )
    if outcome == "learned in part":
        found.append(
            f"No sampled answer is right: {longer[0].lower()}{longer[1:]} higher --learning-rate may "
            "get there. "
            "`edgetune eval RUN --data FILE --exact-match` answers all rows of a file."
        )
    if outcome == "learned little" and facts.trained >= VERY_FEW_ROWS:
        found.append(f"{longer} higher --learning-rate, if the rows hold more than that.")
    return found


def _forgets(neutral: Compared | None) -> bool:
    if neutral is None or exp(min(neutral.base_loss, 700.0)) > FOREIGN:
        return False
    return neutral.rise > FORGETS


def _on_length(facts: Facts, best: int) -> list[str]:
    """Return what the validation losses say of the number of steps."""
    last = facts.evaluations[-1]
    if best < EARLY * facts.steps:
        when = f"step {best} of {facts.steps}"
        return [f"Validation stopped improving at {when}: about --steps {best} would have done."]
    earlier = [loss for step, loss in facts.evaluations[:-1] if step <= LATE * facts.steps]
    done = facts.answers is not None and facts.answers.right == facts.answers.count
    if not done and best == last[0] and earlier and last[1] < (1 - STILL) * earlier[-1]:
        return [STILL_IMPROVED]
    return []


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
