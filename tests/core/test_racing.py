"""Learning rates that are raced before a run: which are tried, which wins, what it may cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import UsageError
from edgetune.patience import PatienceState
from edgetune.racing import COST, Race, because, following, lengths, winner
from edgetune.schedule import schedule_of
from edgetune.settings.spec import Training

DEFAULT = 1e-3


def race(rate: float, loss: float | None, perplexity: float | None = 60.0) -> Race:
    return Race(rate=rate, loss=loss, perplexity=perplexity)


@given(st.integers(14, 10**6))
def test_all_races_together_are_a_share_of_the_run(steps: int) -> None:
    found = lengths(steps)
    assert 2 <= found.races <= 4
    assert found.steps >= max(3, steps / 10)
    assert found.steps * found.races <= COST * steps


@pytest.mark.parametrize("steps", [1, 13])
def test_a_short_run_is_not_raced_for(steps: int) -> None:
    with pytest.raises(UsageError, match=f"a run of {steps} steps is too short"):
        lengths(steps)


def raced(losses: dict[float, float | None], most: int = 4) -> list[Race]:
    found: list[Race] = []
    while (rate := following(found, DEFAULT, most)) is not None:
        found.append(race(rate, losses.get(rate, 9.0)))
    return found


@pytest.mark.parametrize(
    ("losses", "rates", "best"),
    [
        ({1e-3: 1.0, 3e-3: 2.0, 3.33e-4: 3.0}, [1e-3, 3e-3, 3.33e-4], 1e-3),
        ({1e-3: 1.0, 3e-3: 0.5, 9e-3: 0.7}, [1e-3, 3e-3, 9e-3], 3e-3),
        ({1e-3: 1.0, 3e-3: 0.5, 9e-3: 0.2, 2.7e-2: 0.1}, [1e-3, 3e-3, 9e-3, 2.7e-2], 2.7e-2),
        ({1e-3: None, 3.33e-4: 0.9, 1.11e-4: 0.5, 3.7e-5: 0.7}, [1e-3, 3.33e-4, 1.11e-4, 3.7e-5], 1.11e-4),
    ],
)  # fmt: skip
def test_rates_are_tried_where_it_gets_better(
    losses: dict[float, float | None], rates: list[float], best: float
) -> None:
    found = raced(losses)
    assert [one.rate for one in found] == rates
    assert (won := winner(found, DEFAULT)) is not None
    assert won.rate == best
    assert because(found, DEFAULT).startswith(f"learning rate {best:g}: raced against")


def test_no_race_with_figures_leaves_the_default() -> None:
    found = raced(dict.fromkeys((1e-3, 3.33e-4, 1.11e-4, 3.7e-5)))
    assert winner(found, DEFAULT) is None
    assert because(found, DEFAULT).startswith("learning rate 0.001: the usual one")


FIGURES = st.tuples(st.floats(-5.0, 20.0), st.floats(1.0, 1e6))


@given(st.lists(FIGURES, min_size=1, max_size=4))
def test_a_rate_that_destroys_the_model_never_wins_against_a_mild_one_of_its_loss(
    figures: list[tuple[float, float]],
) -> None:
    """The rule: no more than twice the default's perplexity while another is within 2 % of the loss."""
    found = [race(DEFAULT * 3**i, loss, drift) for i, (loss, drift) in enumerate(figures)]
    won = winner(found, DEFAULT)
    assert won is not None
    assert won.perplexity is not None
    assert won.loss is not None
    limit = 2 * figures[0][1]
    if won.perplexity > limit:
        for loss, drift in figures:
            assert drift > limit or loss > won.loss + 0.02 * abs(won.loss)


def test_rates_are_held_against_the_lowest_loss_not_against_each_other() -> None:
    figures = [(3e-3, 1.05, 62.0), (1e-3, 1.10, 60.0), (3.33e-4, 1.15, 59.0), (1.11e-4, 1.2, 58.5)]
    raced = [Race(rate=rate, loss=loss, perplexity=drift) for rate, loss, drift in figures]
    best = winner(raced, 1e-3)
    assert best is not None
    assert best.rate == 1e-3


@given(st.integers(14, 10**6), st.integers(0, 20))
def test_a_run_that_may_end_early_is_raced_for_as_if_it_did(steps: int, patience: int) -> None:
    schedule = schedule_of(Training(steps=steps, patience=patience, learning_rate=DEFAULT), steps)
    now = PatienceState()
    for step in range(schedule.eval_every, steps + 1, schedule.eval_every):
        now = now.after(1.0)  # never a lower one
        if schedule.is_over(step, now):
            break
    else:
        step = steps
    assert schedule.shortest == step
    if step >= 14:
        found = lengths(step, most=steps)
        assert found.steps * found.races <= COST * step
    else:
        with pytest.raises(
            UsageError, match="Train longer, with --patience 0" if step < steps else "Train"
        ):
            lengths(step, most=steps)
