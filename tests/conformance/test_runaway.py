"""A loss that runs away on real sessions: the run goes back exactly, and ends with exit code 8."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rows import write_rows

from conformance.backends import BACKENDS, WAYS
from conformance.sessions import Bench, rows
from edgetune.backend import Session, Tensors
from edgetune.data.batch import MicroBatch
from edgetune.errors import DivergedError
from edgetune.events import Event, Rewound, RunState, SaveDue, Stepped
from edgetune.guard import REWINDS
from edgetune.loop import Schedule, train
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.training import start_run

ENDED = r"halved 3 times.*No adapter is promoted"
STEPS, SPOILED, GOOD = 14, 5, 4
SCHEDULE = Schedule(steps=STEPS, eval_every=50, save_every=4, warmup=0, learning_rate=1e-3)


@dataclass(frozen=True)
class Data:
    """One micro-batch is the step."""

    micro_batches: tuple[MicroBatch, ...]
    loss_tokens: int
    tokens: int
    epoch: int = 0


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


def trained(session: Session, *, spoil: bool) -> list[Event]:
    """Train with checkpoints in memory; spoil the adapter once, after a step."""
    saved: dict[int, tuple[RunState, tuple[Tensors, Tensors]]] = {}

    def back_to(step: int) -> RunState:
        state, tensors = saved[step]
        session.restore(*tensors)
        return state

    events = []
    for event in train(session, step_of, nothing, SCHEDULE, rewind=back_to):
        events.append(event)
        if isinstance(event, SaveDue):
            saved[event.state.step] = event.state, state_of(session)
        elif isinstance(event, Stepped) and event.step == SPOILED and spoil:
            spoil, (adapter, optimizer) = False, state_of(session)
            session.restore({name: value + 1e38 for name, value in adapter.items()}, optimizer)
    return events


def test_going_back_is_exact(bench: Bench, llama: LocalModel) -> None:
    method = Lora(rank=2, dropout=0.1)
    session, clean = bench.open(method, llama), bench.open(method, llama)
    (back,) = [event for event in trained(session, spoil=True) if isinstance(event, Rewound)]
    assert (back.step, back.to) == (SPOILED, GOOD)
    assert back.learning_rate == SCHEDULE.learning_rate / 2
    for number in range(STEPS):
        data, rate = step_of(number), SCHEDULE.rate(number) * (0.5 if number >= GOOD else 1)
        clean.step(data.micro_batches, loss_tokens=data.loss_tokens, learning_rate=rate)
    assert_same(session, clean)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_rate_beyond_any_use_promotes_nothing(name: str, tmp_path: Path) -> None:
    choice = {"micro_batch": 2, "accumulation": 1, "rank": 2, "compute_dtype": "float32"}
    training = {"learning_rate": 1e4, "steps": 6, "eval_every": 6}
    request = PlanRequest(
        model="tiny", data=write_rows(tmp_path / "rows.jsonl"), device=WAYS[name].device,
        choice=choice, training=training,
    )  # fmt: skip
    run = start_run(plan_for(request), tmp_path / "run")
    events: list[Event] = []
    with closing(run), pytest.raises(DivergedError, match=ENDED) as caught:
        events.extend(run.events())
    assert caught.value.exit_code == 8
    assert len([event for event in events if isinstance(event, Rewound)]) == REWINDS
    assert not run.folder.adapter.exists()
    assert (run.folder.path / "memory.json").exists()
