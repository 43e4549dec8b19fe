"""The loop where memory runs out: smaller parts of the same step, and pilots that find it first."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
from loops import (
    SCHEDULE,
    Saving,
    assert_close,
    assert_same,
    base_loss,
    losses,
    nothing,
    of,
    pilot,
    run,
    until_error,
)
from softmax import HELD_OUT, TRAINED, SoftmaxSession

from edgetune.backend import (
    MemoryReading,
    StepResult,
    Tensors,
    TornStateError,
)
from edgetune.errors import OutOfMemoryError
from edgetune.events import (
    Piloted,
    Recovered,
    RunState,
    SaveDue,
    TrialSaveDue,
)
from edgetune.loop import train


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

    def adapter_tensors(self, *, copied: bool = True) -> Tensors:
        if getattr(self, "torn", False):
            raise TornStateError
        return super().adapter_tensors()


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
