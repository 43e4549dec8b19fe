"""Objectives over answers: slopes are derivatives, settings are the objective's own."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import UsageError
from edgetune.objectives import OBJECTIVES, DocumentSums, objective_class, objective_of
from edgetune.objectives.base import Answer, PairObjective
from edgetune.objectives.kto import KTO
from edgetune.settings.spec import ObjectiveName, Training

PAIRWISE = [name for name in OBJECTIVES if issubclass(objective_class(name), PairObjective)]
STEP = 1e-5
EXTREMES = (-1e5, -1e-12, 0.0)

means = st.floats(-6, -0.05)
answers = st.builds(
    lambda mean, tokens, ratio: Answer(mean * tokens, tokens, mean * tokens - ratio),
    means, st.integers(1, 40), st.floats(-5, 5),
)  # fmt: skip


def _made(name: str) -> PairObjective:
    objective = objective_of(Training(learning_rate=1e-4, objective=name))  # type: ignore[arg-type]
    assert isinstance(objective, PairObjective)
    return objective


@pytest.mark.parametrize("name", PAIRWISE)
@given(chosen=answers, rejected=answers)
def test_slopes_are_derivatives(name: str, chosen: Answer, rejected: Answer) -> None:
    pair = _made(name).pair

    def moved(by: tuple[float, float]) -> float:
        both = (chosen, rejected)
        return pair(*(replace(a, log_prob=a.log_prob + d)
                      for a, d in zip(both, by, strict=True))).loss  # fmt: skip

    term = pair(chosen, rejected)
    found = ((moved((STEP, 0)) - moved((-STEP, 0))) / (2 * STEP),
             (moved((0, STEP)) - moved((0, -STEP))) / (2 * STEP))  # fmt: skip
    assert (term.chosen_slope, term.rejected_slope) == pytest.approx(found, rel=1e-4, abs=1e-6)
    assert term.chosen_slope <= 0 or name == "ipo"


@pytest.mark.parametrize(("name", "chosen", "rejected"), [*product(PAIRWISE, EXTREMES, EXTREMES)])
def test_extremes_are_numbers(name: str, chosen: float, rejected: float) -> None:
    term = _made(name).pair(Answer(chosen, 3, -10.0), Answer(rejected, 5, -10.0))
    assert all(map(math.isfinite, (term.loss, term.chosen_slope, term.rejected_slope)))


@pytest.mark.parametrize("name", PAIRWISE)
def test_what_is_no_number_is_none_in_the_loss(name: str) -> None:
    sums = DocumentSums((math.nan, -3.0), (2, 2))
    found = _made(name).scored(("chosen", "rejected"), sums, DocumentSums((-1.0, -1.0), (2, 2)))
    assert not math.isfinite(found.loss)


@given(answer=answers, divergence=st.floats(0, 5), chosen=st.booleans())
def test_slopes_of_an_unpaired_answer_are_derivatives(
    answer: Answer, divergence: float, *, chosen: bool
) -> None:
    kto = KTO(desirable_weight=1.5, undesirable_weight=0.5)
    moved = [replace(answer, log_prob=answer.log_prob + by) for by in (STEP, -STEP)]
    more, less = (kto.answer(each, divergence, chosen=chosen)[0] for each in moved)
    loss, slope = kto.answer(answer, divergence, chosen=chosen)
    assert slope == pytest.approx((more - less) / (2 * STEP), rel=1e-4, abs=1e-6)
    assert (slope <= 0) is chosen
    assert 0 <= loss <= (1.5 if chosen else 0.5)


@pytest.mark.parametrize(("log_prob", "chosen"), [*product(EXTREMES, (True, False))])
def test_extremes_of_an_unpaired_answer_are_numbers(log_prob: float, *, chosen: bool) -> None:
    found = KTO().answer(Answer(log_prob, 3, -10.0), 1e4, chosen=chosen)
    assert all(map(math.isfinite, found))


def test_rewards_of_answers_that_are_not_there_are_left_out() -> None:
    found = KTO().scored(("chosen",), DocumentSums((-1.0,), (2,)), DocumentSums((-3.0,), (2,)))
    assert found.rewards.means(1) == {
        "rewards/chosen": pytest.approx(0.2), "rewards/accuracies": 1.0, "kl": 0.0,
    }  # fmt: skip


def test_the_settings_name_every_objective() -> None:
    assert set(get_args(ObjectiveName)) == {"sft", *OBJECTIVES}
    assert [objective_class(name).name for name in OBJECTIVES] == list(OBJECTIVES)


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.1},
        {"objective": "dpo", "margin": 1.0},
        {"margin": 0.5},
        {"objective": "dpo", "desirable_weight": 2.0},
    ],
)
def test_settings_of_another_objective_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"has no --{[*settings][-1].replace('_', '-')}"):
        objective_of(Training(learning_rate=1e-4, **settings))  # type: ignore[arg-type]
