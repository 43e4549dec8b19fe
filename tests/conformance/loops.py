"""Steps for the training loop over real sessions, checkpoints in memory, comparison bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from conformance.sessions import rows
from edgetune.backend import Session, Tensors
from edgetune.data.batch import MicroBatch
from edgetune.events import Event, RunState, SaveDue
from edgetune.loop import train
from edgetune.pilot import Pilot
from edgetune.schedule import Schedule


@dataclass(frozen=True)
class Data:
    """One micro-batch is the step."""

    micro_batches: tuple[MicroBatch, ...]
    loss_tokens: int
    tokens: int
    epoch: int = 0

    @property
    def terms(self) -> int:
        """What the loss is divided by."""
        return self.loss_tokens


def step_of(number: int) -> Data:
    batch = rows(4, seed=number)
    return Data((batch,), batch.loss_tokens, batch.real_tokens)


def nothing() -> Iterator[MicroBatch]:
    return iter(())


def state_of(session: Session) -> tuple[Tensors, Tensors]:
    return session.adapter_tensors(), session.optimizer_tensors()


def assert_same(one: Session, other: Session) -> None:
    for found, expected in zip(state_of(one), state_of(other), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert np.asarray(found[name]).tobytes() == np.asarray(value).tobytes(), name


def trained(
    session: Session,
    schedule: Schedule,
    *,
    start: RunState | None = None,
    pilot: Pilot | None = None,
    act: Callable[[Event], None] = lambda _: None,
) -> list[Event]:
    """Train with checkpoints in memory, no validation rows; ``act`` is called after each event."""
    saved: dict[int, tuple[RunState, tuple[Tensors, Tensors]]] = {}
    if start is not None:
        saved[start.step] = start, state_of(session)

    def back_to(step: int) -> RunState:
        state, tensors = saved[step]
        session.restore(*tensors)
        return state

    events = []
    for event in train(session, step_of, nothing, schedule, start, rewind=back_to, pilot=pilot):
        events.append(event)
        if isinstance(event, SaveDue):
            saved[event.state.step] = event.state, state_of(session)
        act(event)
    return events
