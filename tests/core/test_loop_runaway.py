"""A loss that runs away: back to a good checkpoint, at half the rate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from loops import SCHEDULE, Saving, assert_same, nothing, of, pilot
from softmax import HELD_OUT, TRAINED, Data, Rows, SoftmaxSession

from edgetune.backend import (
    StepResult,
)
from edgetune.errors import DivergedError, OutOfMemoryError
from edgetune.events import (
    Evaluated,
    Piloted,
    Recovered,
    Rewound,
    Stepped,
)
from edgetune.guard import PATIENCE, REWINDS
from edgetune.loop import train

RUNAWAY = replace(SCHEDULE, steps=30, eval_every=10, save_every=5, warmup=0)


@pytest.mark.parametrize("evaluation", [HELD_OUT.evaluation, nothing])
@pytest.mark.parametrize("rate", [50.0, 1e30])
def test_a_loss_that_runs_away_halves_the_rate_three_times(rate: float, evaluation: object) -> None:
    schedule = replace(RUNAWAY, learning_rate=rate)
    events, error = Saving(SoftmaxSession()).run(schedule, evaluation)
    assert isinstance(error, DivergedError)
    assert f"halved {REWINDS} times" in str(error)
    rewinds = of(Rewound, events)
    assert [event.learning_rate for event in rewinds] == [rate / 2, rate / 4, rate / 8]
    assert {event.to for event in rewinds} == {0}
    assert not any(event.best for event in of(Evaluated, events))


class Shaken(SoftmaxSession):
    """Its adapter is spoiled once, before one of its steps."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def step(self, *batches: object, **others: object) -> StepResult:
        self.at -= 1
        if self.at == 0:
            draw = np.random.default_rng(1)
            self.adapter = {n: draw.normal(0, 2, v.shape) for n, v in self.adapter.items()}
        return super().step(*batches, **others)


@pytest.mark.parametrize(("at", "good"), [(1, 0), (5, 0), (6, 5), (15, 10), (16, 15)])
def test_after_going_back_everything_is_as_at_half_the_rate(at: int, good: int) -> None:
    schedule = replace(RUNAWAY, steps=30, learning_rate=0.02)
    spoiled, clean = Shaken(at + 1), SoftmaxSession()
    saving = Saving(spoiled)
    events, error = saving.run(schedule, nothing)
    assert error is None
    (back,) = of(Rewound, events)
    assert (back.step, back.to, back.learning_rate) == (at + PATIENCE, good, 0.01)
    for step in range(30):
        data = TRAINED.step(step)
        rate = schedule.rate(step) * (0.5 if step >= good else 1)
        clean.step(data.micro_batches, loss_tokens=data.loss_tokens, learning_rate=rate)
    assert_same(spoiled, clean)
    assert events[-1].state.guard.rewinds == 1


def test_a_damaged_checkpoint_is_not_gone_back_to() -> None:
    schedule = replace(RUNAWAY, steps=30, learning_rate=0.02)
    spoiled, clean = Shaken(17), SoftmaxSession()
    saving = Saving(spoiled)
    saving.damaged = {15}
    events, error = saving.run(schedule, nothing)
    assert error is None
    (back,) = of(Rewound, events)
    assert (back.step, back.to) == (16 + PATIENCE, 10)
    for step in range(30):
        data = TRAINED.step(step)
        rate = schedule.rate(step) * (0.5 if step >= 10 else 1)
        clean.step(data.micro_batches, loss_tokens=data.loss_tokens, learning_rate=rate)
    assert_same(spoiled, clean)
    assert events[-1].state.guard.good == 25


def test_strict_stops_instead_of_changing() -> None:
    events, error = Saving(SoftmaxSession()).run(replace(RUNAWAY, learning_rate=50.0), strict=True)
    assert isinstance(error, DivergedError)
    assert not of(Rewound, events)
    events, error = Saving(SoftmaxSession(rows=3)).run(RUNAWAY, strict=True)
    assert isinstance(error, OutOfMemoryError)
    assert not of(Recovered, events)
    assert "resumed with --no-strict" in str(error)


def test_rows_that_are_hard_are_no_runaway() -> None:
    """Losses that jump are settled by the base, which finds the same rows as hard."""
    session = SoftmaxSession()
    hard = session.base.copy()
    hard[:, :8] *= 6

    def steps(number: int) -> Data:
        step = TRAINED.step(number)
        session.base = hard if number >= 20 else np.zeros_like(hard)
        return step

    schedule = replace(RUNAWAY, steps=40, learning_rate=1e-3)
    events = list(train(session, steps, nothing, schedule, rewind=lambda _: pytest.fail("back")))
    losses = [event.loss for event in of(Stepped, events)]
    assert min(losses[20:]) > 1.5 * max(losses[:20])
    assert events[-1].state.guard.rewinds == 0


@pytest.mark.parametrize("rate", [1e-3, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_ordinary_runs_are_left_alone(rate: float, size: int) -> None:
    schedule = replace(RUNAWAY, steps=150, learning_rate=rate, warmup=5)
    for seed in range(3):
        rows = Rows(40, seed=seed)
        session = SoftmaxSession(seed=seed)
        run_ = train(session, lambda number, rows=rows: rows.step(number, size), nothing, schedule)
        assert len(of(Stepped, list(run_))) == 150


def test_a_pilot_without_a_number_leaves_it_to_the_run_to_say_so() -> None:
    session = SoftmaxSession()
    session.base[:] = np.nan
    events, error = Saving(session).run(RUNAWAY, nothing, pilot=pilot())
    assert len(of(Piloted, events)) == 1
    assert "Step 1 gave loss nan" in str(error)


def test_a_first_step_without_a_number_has_nothing_to_go_back_to() -> None:
    session = SoftmaxSession()
    session.base[:] = np.nan
    _, error = Saving(session).run(RUNAWAY, nothing)
    assert isinstance(error, DivergedError)
    assert "Step 1 gave loss nan" in str(error)
    assert "going back does not help" in str(error)


@pytest.mark.parametrize("rate", [1e30, 5000.0])
def test_the_last_step_is_looked_at_too(rate: float) -> None:
    _, error = Saving(SoftmaxSession()).run(replace(RUNAWAY, steps=1, learning_rate=rate), nothing)
    assert isinstance(error, DivergedError)
