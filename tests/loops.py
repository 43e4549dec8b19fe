"""What the tests of the loop share: a short run, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from softmax import HELD_OUT, TRAINED, SoftmaxSession

from edgetune.data.batch import MicroBatch
from edgetune.errors import DivergedError, OutOfMemoryError, StoppedError
from edgetune.events import (
    Evaluated,
    Event,
    RunState,
    SaveDue,
    Stepped,
)
from edgetune.loop import train
from edgetune.pilot import Pilot
from edgetune.schedule import Schedule

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


def base_loss() -> float:
    sums = SoftmaxSession().evaluate(HELD_OUT.evaluation(), adapter=None)
    return sums.loss_sum / sums.loss_tokens


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


def pilot(number: int = 3) -> Pilot:
    return Pilot(step=TRAINED.step(number), evaluation=next(HELD_OUT.evaluation()))
