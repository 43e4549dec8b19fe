"""The loop, over a numpy session with exact gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from softmax import HELD_OUT, TRAINED, Data, Rows, SoftmaxSession

from edgetune.backend import (
    DEFAULT_ADAPTER,
    EvalResult,
    MemoryReading,
    StepResult,
    Tensors,
    TornStateError,
)
from edgetune.data.batch import MicroBatch, split
from edgetune.errors import DivergedError, LostRankError, OutOfMemoryError, StoppedError
from edgetune.events import (
    EndedEarly,
    Evaluated,
    Event,
    Piloted,
    Recovered,
    Rewound,
    RunState,
    SaveDue,
    Stepped,
    TrialSaveDue,
)
from edgetune.guard import PATIENCE, REWINDS
from edgetune.loop import train
from edgetune.pilot import Pilot
from edgetune.schedule import Schedule, schedule_of
from edgetune.settings.spec import Training

SCHEDULE = Schedule(steps=7, eval_every=2, save_every=3, warmup=2, learning_rate=0.05)


def nothing() -> Iterator[MicroBatch]:
    return iter(())


def run(session: SoftmaxSession, schedule: Schedule = SCHEDULE, **others: object) -> list[Event]:
    """Train to the end and return all events."""
    return list(train(session, TRAINED.step, HELD_OUT.evaluation, schedule, **others))


def until_error(events: Iterator[Event]) -> tuple[list[Event], Exception]:
    """Return the events and the error that ended them."""
    seen: list[Event] = []
    while True:
        try:
            seen.append(next(events))
        except (StoppedError, OutOfMemoryError, DivergedError) as error:
            return seen, error


def of(kind: type, events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Stepped | Evaluated)]


def assert_same(one: SoftmaxSession, other: SoftmaxSession) -> None:
    """Compare all state bit for bit."""
    for a, b in ((one.adapter, other.adapter), (one.moments, other.moments)):
        assert {name: value.tobytes() for name, value in a.items()} == {
            name: value.tobytes() for name, value in b.items()
        }


def assert_close(one: SoftmaxSession, other: SoftmaxSession) -> None:
    """Compare what was learned but for the order of sums."""
    for name, value in one.adapter.items():
        np.testing.assert_allclose(other.adapter[name], value, rtol=0, atol=2e-6)


def test_the_reference_has_the_gradient_of_its_loss() -> None:
    session, (batch,) = SoftmaxSession(), TRAINED.step(0).micro_batches
    session.adapter = {
        name: np.random.default_rng(3).normal(size=value.shape)
        for name, value in session.adapter.items()
    }
    _, gradients = session._gradients(batch)
    for name, gradient in gradients.items():
        for at in [(0, 0), (1, 2), (2, 1)]:
            values = []
            for shift in (1e-6, -1e-6):
                session.adapter[name][at] += shift
                values.append(session.evaluate([batch]).loss_sum)
                session.adapter[name][at] -= shift
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(gradient[at], rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_accumulation_is_the_big_batch(rows: int) -> None:
    def steps(number: int) -> Data:
        step = TRAINED.step(number)
        return replace(step, micro_batches=split(step.micro_batches, rows))

    whole, parts = SoftmaxSession(), SoftmaxSession()
    expected = run(whole)
    found = list(train(parts, steps, HELD_OUT.evaluation, SCHEDULE))
    assert len({len(steps(0).micro_batches), len(TRAINED.step(0).micro_batches)}) == 2
    assert losses(found) == pytest.approx(losses(expected), abs=1e-6)
    assert_close(whole, parts)


@given(st.integers(1, 9), st.integers(1, 20))
def test_split_keeps_every_row(rows: int, seed: int) -> None:
    (batch,) = Rows(8, seed=seed).step(0).micro_batches
    parts = split([batch], rows)
    assert max(len(part.tokens) for part in parts) == min(rows, len(batch.tokens))
    assert np.array_equal(np.concatenate([part.tokens for part in parts]), batch.tokens)
    assert sum((part.documents for part in parts), ()) == batch.documents
    assert sum(part.loss_tokens for part in parts) == batch.loss_tokens


@given(st.integers(1, 60), st.integers(0, 60), st.floats(1e-6, 1e3))
def test_the_rate_rises_linearly_and_falls_as_a_cosine(
    steps: int, warmup: int, peak: float
) -> None:
    schedule = replace(SCHEDULE, steps=steps, warmup=min(warmup, steps), learning_rate=peak)
    for step in range(steps):
        if step < schedule.warmup:
            expected = peak * (step + 1) / schedule.warmup
        else:
            share = (step - schedule.warmup) / (steps - schedule.warmup)
            expected = peak * (1 + math.cos(math.pi * share)) / 2
        assert schedule.rate(step) == pytest.approx(expected)
        assert 0 < schedule.rate(step) <= peak


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 2.5}, (25, 3, 3, 1)),
        ({"epochs": 0.01}, (1, 1, 1, 1)),
        ({"steps": 200, "warmup": 0.1}, (200, 20, 20, 20)),
        ({"steps": 200, "eval_every": 7}, (200, 7, 7, 6)),
        ({"steps": 200, "eval_every": 7, "save_every": 5, "warmup": 0.0}, (200, 7, 5, 0)),
    ],
)
def test_settings_make_a_schedule(settings: dict[str, float], expected: tuple[int, ...]) -> None:
    found = schedule_of(Training(learning_rate=0.5, **settings), steps_per_epoch=10)
    assert (found.steps, found.eval_every, found.save_every, found.warmup) == expected
    assert found.learning_rate == 0.5


def test_events_come_in_order() -> None:
    events = run(SoftmaxSession())
    steps, every = SCHEDULE.steps, SCHEDULE.eval_every
    best = {event.step for event in of(Evaluated, events) if event.best}
    expected = [(SaveDue, 0), (Evaluated, 0)]
    for step in range(1, steps + 1):
        expected.append((Stepped, step))
        if step % every == 0 or step == steps:
            expected.append((Evaluated, step))
        if step % SCHEDULE.save_every == 0 or step == steps or step in best:
            expected.append((SaveDue, step))
    places = [e.state.step if isinstance(e, SaveDue) else e.step for e in events]
    assert list(zip(map(type, events), places, strict=True)) == expected


def test_a_step_tells_what_was_done() -> None:
    session = SoftmaxSession()
    for number, event in enumerate(of(Stepped, run(session))):
        data = TRAINED.step(number)
        assert (event.tokens, event.loss_tokens) == (data.tokens, data.loss_tokens)
        assert event.epoch == number // TRAINED.steps_per_epoch()
        assert event.learning_rate == SCHEDULE.rate(number)
        assert event.seconds > 0
        assert event.peak_bytes == session.memory().peak_bytes


def test_an_evaluation_is_of_the_state_it_follows() -> None:
    events = train(SoftmaxSession(), TRAINED.step, HELD_OUT.evaluation, SCHEDULE)
    session = SoftmaxSession()
    for event in events:
        if isinstance(event, Stepped):
            session.step(
                TRAINED.step(event.step - 1).micro_batches,
                loss_tokens=event.loss_tokens,
                learning_rate=event.learning_rate,
            )
        elif isinstance(event, Evaluated):
            adapter = DEFAULT_ADAPTER if event.step else None
            sums = session.evaluate(HELD_OUT.evaluation(), adapter=adapter)
            assert event.loss == pytest.approx(sums.loss_sum / sums.loss_tokens)
            assert event.perplexity == pytest.approx(math.exp(event.loss))
            assert event.accuracy == sums.correct / sums.loss_tokens
            assert event.rows == len(HELD_OUT.tokens)


def test_the_best_is_the_lowest_validation_loss() -> None:
    best = RunState(base_loss=math.inf)
    for event in run(SoftmaxSession(), replace(SCHEDULE, steps=30, learning_rate=2.0)):
        if isinstance(event, Evaluated) and event.step == 0:
            best = RunState(base_loss=event.loss)
        elif isinstance(event, Evaluated):
            assert event.best == (event.loss < best.loss_to_beat)
            if event.best:
                best = RunState(step=event.step, best_step=event.step, best_loss=event.loss)
        elif isinstance(event, SaveDue) and best.best_step is not None:
            assert (event.state.best_step, event.state.best_loss) == (best.step, best.best_loss)
            assert event.state.is_best == (event.state.step == best.step)


def test_what_is_worse_than_the_base_is_never_the_best() -> None:
    worse = replace(SCHEDULE, steps=4, warmup=0, learning_rate=4.0)
    events = run(SoftmaxSession(), worse)
    base, *evaluations = of(Evaluated, events)
    assert base.step == 0
    assert base.loss == pytest.approx(base_loss())
    assert all(event.loss > base.loss and not event.best for event in evaluations)
    state = of(SaveDue, events)[-1].state
    assert (state.base_loss, state.best_step, state.best_loss) == (base.loss, None, None)


def base_loss() -> float:
    sums = SoftmaxSession().evaluate(HELD_OUT.evaluation(), adapter=None)
    return sums.loss_sum / sums.loss_tokens


def test_without_validation_rows_nothing_is_best() -> None:
    events = list(train(SoftmaxSession(), TRAINED.step, nothing, SCHEDULE))
    assert not of(Evaluated, events)
    assert all(event.state.best_step is None for event in of(SaveDue, events))


def test_training_learns() -> None:
    events = run(SoftmaxSession(), replace(SCHEDULE, steps=60))
    evaluations = of(Evaluated, events)
    assert evaluations[-1].loss < 0.7 * evaluations[0].loss


@pytest.mark.parametrize("after", range(1, SCHEDULE.steps))
def test_stopped_and_resumed_is_uninterrupted(after: int) -> None:
    whole = SoftmaxSession()
    expected = run(whole)
    answers = iter([False] * (after - 1) + [True])
    stopped = SoftmaxSession()
    begun, error = until_error(
        train(stopped, TRAINED.step, HELD_OUT.evaluation, SCHEDULE, stop=lambda: next(answers))
    )
    assert str(error) == f"Stopped after step {after} of {SCHEDULE.steps}."
    assert isinstance(begun[-1], SaveDue)
    assert begun[-1].state.step == after
    resumed = SoftmaxSession(seed=0)
    resumed.restore(stopped.adapter_tensors(), stopped.optimizer_tensors())
    rest = run(resumed, start=begun[-1].state)
    assert losses(begun) + losses(rest) == losses(expected)
    assert rest[-1] == expected[-1]
    assert_same(whole, resumed)


def test_stopping_at_the_end_is_no_stop() -> None:
    events = run(SoftmaxSession(), replace(SCHEDULE, steps=1), stop=lambda: True)
    assert events[-1].state.step == 1


def test_a_finished_run_has_nothing_to_do() -> None:
    assert run(SoftmaxSession(), start=RunState(step=SCHEDULE.steps)) == []


@pytest.mark.parametrize(("fit", "tried"), [(7, [4]), (3, [4, 2]), (1, [4, 2, 1])])
def test_out_of_memory_repeats_the_step_in_smaller_parts(fit: int, tried: list[int]) -> None:
    roomy, tight = SoftmaxSession(), SoftmaxSession(rows=fit)
    expected, found = run(roomy), run(tight)
    recoveries = of(Recovered, found)
    assert [(event.step, event.rows) for event in recoveries] == [(1, rows) for rows in tried]
    assert recoveries[0].because == f"8 rows, {fit} fit"
    assert losses(found) == pytest.approx(losses(expected), abs=1e-6)
    assert_close(roomy, tight)
    assert of(SaveDue, found)[-1].state.rows == tried[-1]


def test_a_resumed_run_remembers_what_fits() -> None:
    tight = SoftmaxSession(rows=3)
    first = list(islice(train(tight, TRAINED.step, nothing, SCHEDULE), 9))
    state = of(SaveDue, first)[-1].state
    assert state.step > 0
    again = SoftmaxSession(rows=3)
    again.restore(tight.adapter_tensors(), tight.optimizer_tensors())
    assert not of(Recovered, run(again, start=state))


def test_out_of_memory_in_an_evaluation_changes_no_sum() -> None:
    roomy, tight = SoftmaxSession(), SoftmaxSession(evaluated_rows=3)
    expected, found = run(roomy), run(tight)
    assert [(event.step, event.rows) for event in of(Recovered, found)] == [(0, 4), (0, 2)]
    assert losses(found) == pytest.approx(losses(expected), abs=1e-6)


@pytest.mark.parametrize("step", [2, SCHEDULE.steps])
def test_an_evaluation_that_is_interrupted_is_made_when_the_run_goes_on(step: int) -> None:
    expected = run(SoftmaxSession())

    class Lost(SoftmaxSession):
        def evaluate(self, *batches: object, **others: object) -> EvalResult:
            if self.steps == step:
                raise LostRankError("Rank 1 ended.")
            return super().evaluate(*batches, **others)

    lost = Lost()
    events, error = until_error(train(lost, TRAINED.step, HELD_OUT.evaluation, SCHEDULE))
    assert isinstance(error, LostRankError)
    saved = events[-1]
    assert isinstance(saved, SaveDue)
    assert saved.state.step == step
    resumed = SoftmaxSession()
    resumed.restore(lost.adapter_tensors(), lost.optimizer_tensors())
    rest = list(train(resumed, TRAINED.step, HELD_OUT.evaluation, SCHEDULE, saved.state))
    assert of(Evaluated, events) + of(Evaluated, rest) == of(Evaluated, expected)
    assert of(SaveDue, rest)[-1] == of(SaveDue, expected)[-1]


def test_one_row_that_does_not_fit_ends_the_run_with_its_state() -> None:
    session, untouched = SoftmaxSession(rows=0), SoftmaxSession()
    events, error = until_error(train(session, TRAINED.step, HELD_OUT.evaluation, SCHEDULE))
    assert isinstance(error, OutOfMemoryError)
    width = TRAINED.step(0).micro_batches[0].tokens.shape[1]
    assert f"One row of {width} tokens does not fit: 1 rows, 0 fit." in str(error)
    assert "--resume" in str(error)
    assert events[-1] == SaveDue(state=RunState(base_loss=base_loss(), rows=1))
    assert_same(session, untouched)


def test_a_state_that_is_torn_is_neither_gone_on_with_nor_saved() -> None:
    saving = Saving(TornSession())
    events, error = saving.run(SCHEDULE)
    assert isinstance(error, TornStateError)
    assert not of(Recovered, events)
    assert list(saving.saved) == [0]


class TornSession(SoftmaxSession):
    """Is torn by its first step."""

    def step(self, *_: object, **__: object) -> StepResult:
        self.torn = True
        raise TornStateError

    def adapter_tensors(self) -> Tensors:
        if getattr(self, "torn", False):
            raise TornStateError
        return super().adapter_tensors()


def test_a_base_that_gives_no_numbers_ends_the_run_before_it_begins() -> None:
    session = SoftmaxSession()
    session.base[:] = np.nan
    events, error = until_error(train(session, TRAINED.step, HELD_OUT.evaluation, SCHEDULE))
    assert isinstance(error, DivergedError)
    assert "The validation loss of the base model is nan" in str(error)
    assert events == [SaveDue(state=RunState())]


class Saving:
    """Consumes a run's events and keeps its checkpoints in memory."""

    def __init__(self, session: SoftmaxSession) -> None:
        self.session = session
        self.saved: dict[int, tuple[RunState, dict, dict]] = {}
        self.damaged: set[int] = set()

    def run(
        self, schedule: Schedule, evaluation: object = HELD_OUT.evaluation, **others: object
    ) -> tuple[list[Event], Exception | None]:
        """Return the events, and the error that ended them."""
        events: list[Event] = []
        try:
            for event in train(
                self.session, TRAINED.step, evaluation, schedule, rewind=self.rewind, **others
            ):
                events.append(event)
                if isinstance(event, SaveDue):
                    state = self.session.adapter_tensors(), self.session.optimizer_tensors()
                    self.saved.setdefault(event.state.step, (event.state, *state))
        except (DivergedError, OutOfMemoryError, StoppedError) as error:
            return events, error
        return events, None

    def rewind(self, step: int) -> RunState:
        for later in [number for number in self.saved if number > step]:
            del self.saved[later]
        step = max(self.saved.keys() - self.damaged)
        state, adapter, optimizer = self.saved[step]
        self.session.restore(adapter, optimizer)
        return state


class Validated(SoftmaxSession):
    """Its validation losses are told; the base's is 1."""

    def __init__(self, told: list[float], every: int) -> None:
        super().__init__()
        self.told, self.every = told, every

    def evaluate(self, batches: object, *, adapter: str | None = DEFAULT_ADAPTER) -> EvalResult:
        loss = (
            1.0 if adapter is None else self.told[min(self.steps // self.every, len(self.told)) - 1]
        )
        return EvalResult(loss_sum=loss, loss_tokens=1, rows=1)


def one_row() -> Iterator[MicroBatch]:
    return iter((HELD_OUT.batch(0, 1),))


def end_of(told: list[float], patience: int) -> int:
    """Return the evaluation, counted from 1, after which a run is over."""
    for number in range(1, len(told) + 1):
        since = number - 1 - told[:number].index(min(told[:number]))
        if patience and since >= patience:
            return number
    return len(told)


@given(st.lists(st.sampled_from([0.5, 0.9, 1.5, 2.0, 3.0]), min_size=1, max_size=8), st.integers(0, 4),
       st.integers(0, 8))  # fmt: skip
def test_a_run_ends_after_evaluations_without_a_lower_loss(
    told: list[float], patience: int, stop_at: int
) -> None:
    every = 2
    schedule = replace(
        SCHEDULE, steps=every * len(told), eval_every=every, save_every=1, patience=patience
    )
    ended = end_of(told, patience)
    session = Validated(told, every)
    events = list(train(session, TRAINED.step, one_row, schedule))
    assert of(Stepped, events)[-1].step == ended * every
    early = of(EndedEarly, events)
    assert len(early) == (ended < len(told))
    if early:
        assert early[0] == EndedEarly(
            step=ended * every, evaluations=patience, lowest=min(told[:ended])
        )
    final = of(SaveDue, events)[-1].state
    assert final.step == ended * every
    assert list(train(session, TRAINED.step, one_row, schedule, final)) == []

    again = Validated(told, every)
    begun = []
    for event in train(again, TRAINED.step, one_row, schedule):
        begun.append(event)
        if isinstance(event, SaveDue) and event.state.step == min(stop_at, ended * every):
            break
    resumed = Validated(told, every)
    resumed.restore(again.adapter_tensors(), again.optimizer_tensors())
    rest = list(train(resumed, TRAINED.step, one_row, schedule, begun[-1].state))
    assert losses(begun) + losses(rest) == losses(events)
    assert of(EndedEarly, begun) + of(EndedEarly, rest) == early
    assert_same(session, resumed)


def test_a_run_that_is_worse_than_the_base_but_learns_goes_on() -> None:
    told = [9.0, 8.0, 7.0, 6.0, 5.0]
    schedule = replace(SCHEDULE, steps=5, eval_every=1, patience=1)
    events = list(train(Validated(told, 1), TRAINED.step, one_row, schedule))
    assert not of(EndedEarly, events)
    assert not any(event.best for event in of(Evaluated, events))


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
    assert "--strict" in str(error)


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


def pilot(number: int = 3) -> Pilot:
    return Pilot(step=TRAINED.step(number), evaluation=next(HELD_OUT.evaluation()))


def test_a_pilot_changes_nothing() -> None:
    piloted, plain = Saving(SoftmaxSession()), Saving(SoftmaxSession())
    events, _ = piloted.run(SCHEDULE, pilot=pilot())
    expected, _ = plain.run(SCHEDULE)
    first, trial, told, *rest = events
    assert (first, trial) == (SaveDue(state=RunState()), TrialSaveDue(state=RunState()))
    assert (told.step, told.rows, told.positions) == (0, 8, 8 * 12)
    assert losses(rest) == losses(expected)
    assert rest[-1] == expected[-1]
    assert_same(piloted.session, plain.session)


def test_a_pilot_that_does_not_fit_steps_down_before_anything_is_learned() -> None:
    saving = Saving(SoftmaxSession(rows=3))
    events, _ = saving.run(SCHEDULE, pilot=pilot())
    assert [type(event) for event in events[:5]] == [
        SaveDue, Recovered, Recovered, TrialSaveDue, Piloted,
    ]  # fmt: skip
    assert events[4].rows == 2
    assert not of(Recovered, events[5:])
    events, error = Saving(SoftmaxSession(rows=3)).run(SCHEDULE, pilot=pilot(), strict=True)
    assert isinstance(error, OutOfMemoryError)
    assert not of(Piloted, events)


class Watched(SoftmaxSession):
    """Its peak is above what it may take, without an allocation that fails."""

    def memory(self) -> MemoryReading:
        return replace(super().memory(), limit_bytes=1000)


def test_a_pilot_above_the_limit_steps_down() -> None:
    events, _ = Saving(Watched()).run(SCHEDULE, pilot=pilot())
    (told,) = of(Recovered, events)
    assert (told.step, told.rows) == (1, 4)
    assert "1,000 are allowed" in told.because


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
