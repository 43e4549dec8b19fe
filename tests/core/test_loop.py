"""The loop, over a numpy session with exact gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import (
    SCHEDULE,
    assert_close,
    assert_same,
    base_loss,
    losses,
    nothing,
    of,
    run,
    until_error,
)
from softmax import HELD_OUT, TRAINED, Data, Rows, SoftmaxSession

from edgetune.backend import (
    DEFAULT_ADAPTER,
    EvalResult,
)
from edgetune.data.batch import split
from edgetune.errors import DivergedError, LostRankError
from edgetune.events import (
    Evaluated,
    RunState,
    SaveDue,
    Stepped,
)
from edgetune.loop import train
from edgetune.schedule import schedule_of
from edgetune.settings.spec import Training


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


def test_a_base_that_gives_no_numbers_ends_the_run_before_it_begins() -> None:
    session = SoftmaxSession()
    session.base[:] = np.nan
    events, error = until_error(train(session, TRAINED.step, HELD_OUT.evaluation, SCHEDULE))
    assert isinstance(error, DivergedError)
    assert "The validation loss of the base model is nan" in str(error)
    assert events == [SaveDue(state=RunState())]
