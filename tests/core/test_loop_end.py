"""A run that ends when its validation loss falls no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from loops import SCHEDULE, assert_same, losses, of
from softmax import HELD_OUT, TRAINED, SoftmaxSession

from edgetune.backend import (
    DEFAULT_ADAPTER,
    EvalResult,
)
from edgetune.data.batch import MicroBatch
from edgetune.events import (
    EndedEarly,
    Evaluated,
    SaveDue,
    Stepped,
)
from edgetune.loop import train


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
