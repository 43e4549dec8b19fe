"""Ranks that train together learn what one process learns, and fail, stop and go back together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from support.threads import ThreadWorld, in_ranks

from conformance.loops import Data, state_of
from conformance.sessions import Bench, rows
from edgetune.backend import DeviceOutOfMemoryError, Session, Tensors
from edgetune.data.batch import MicroBatch
from edgetune.errors import LostRankError, StoppedError
from edgetune.events import (
    Evaluated,
    Event,
    RanksSeen,
    Recovered,
    Rewound,
    RunState,
    SaveDue,
    Shared,
    Stepped,
)
from edgetune.loop import train
from edgetune.methods import Method
from edgetune.methods.bitfit import BitFit
from edgetune.methods.dora import Dora
from edgetune.methods.lora import Lora
from edgetune.methods.prefix import Prefix
from edgetune.model import LocalModel
from edgetune.pilot import Pilot
from edgetune.schedule import Schedule
from edgetune.shares import Sharing, Weights, dealt, halves_of, parts_of
from edgetune.world import ALONE, World

STEPS = 8
SCHEDULE = Schedule(steps=STEPS, eval_every=4, save_every=4, warmup=0, learning_rate=1e-3)
SHORT = Schedule(steps=2, eval_every=2, save_every=2, warmup=0, learning_rate=1e-3)
METHODS: list[Method] = [
    Lora(rank=2, dropout=0.2),
    Dora(rank=2),
    Prefix(prefix_length=3, reparameterize=True, prefix_hidden=8),
    BitFit(),
]


def batches_of(number: int) -> list[MicroBatch]:
    """The micro-batches of a step; every fourth has one alone, so that some ranks have none."""
    return [rows(2, seed=10 * number + i) for i in range(1 if number % 4 == 3 else 5)]


def share_of(world: World, number: int, weights: Weights = (1,) * 4) -> Data:
    every, own = batches_of(number), parts_of(world.rank, world.size, len(weights))
    found = dealt([batch.tokens.size for batch in every], weights)
    mine = [
        replace(every[i], first=2 * i, halves=halves_of(part - own.start, len(own)))
        for part in own
        for i, its in enumerate(found)
        if its == part
    ]
    return Data(
        tuple(mine),
        sum(batch.loss_tokens for batch in every),
        sum(batch.real_tokens for batch in every),
    )


def evaluation_of(world: World) -> Iterator[MicroBatch]:
    return iter([rows(2, seed=900 + i) for i in range(3)][world.rank :: world.size])


@dataclass(frozen=True)
class Trained:
    """What a rank saw and has."""

    events: list[Event]
    adapter: Tensors

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def trained(
    session: Session,
    world: World,
    *,
    stop: Callable[[int], bool] = lambda _: False,
    schedule: Schedule = SCHEDULE,
    weights: Weights = (1,) * 4,
    by_speed: bool = False,
) -> Trained:
    """Train one rank, with checkpoints in memory."""
    dealt_out = [weights]
    sharing = Sharing(parts=len(weights), by_speed=by_speed, deal=dealt_out.append)
    saved: dict[int, tuple[RunState, tuple[Tensors, Tensors]]] = {}
    events: list[Event] = []

    def back_to(step: int) -> RunState:
        state, tensors = saved[step]
        session.restore(*tensors)
        return state

    steps = train(
        session, lambda number: share_of(world, number, dealt_out[-1]),
        lambda: evaluation_of(world), schedule, None,
        lambda: stop(len([e for e in events if isinstance(e, Stepped)])), rewind=back_to,
        pilot=Pilot(step=share_of(world, 0, weights)), world=world, sharing=sharing,
    )  # fmt: skip
    for event in steps:
        events.append(event)
        if isinstance(event, SaveDue):
            saved[event.state.step] = event.state, state_of(session)
    return Trained(events, session.adapter_tensors())


def opened(bench: Bench, model: LocalModel, method: Method) -> Callable[[World], Session]:
    spec = bench.plan(method, model).spec

    def open_on(world: World) -> Session:
        session = bench.backend.open(spec, model, world)
        bench.held.callback(session.close)
        return session

    return open_on


def assert_near(found: Trained, expected: Trained) -> None:
    """Losses, norms and adapters are the same but for the order in which floats are added.

    AdamW divides by the size of the gradient, so that a gradient that is all but zero makes a
    step of another sign: adapters are compared as wholes.
    """
    for kind, names in ((Stepped, ("loss", "grad_norm", "tokens")), (Evaluated, ("loss", "rows"))):
        for one, other in zip(found.of(kind), expected.of(kind), strict=True):
            for name in names:
                assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-6), name
    difference, size = (
        np.sqrt(sum(float(np.square(x, dtype=np.float64).sum()) for x in tensors))
        for tensors in (
            [found.adapter[name] - value for name, value in expected.adapter.items()],
            expected.adapter.values(),
        )
    )
    assert difference <= 5e-5 * size


def assert_same(found: Trained, expected: Trained) -> None:
    """Every step and every adapter is the same, bit for bit."""
    for one, other in zip(found.of(Stepped), expected.of(Stepped), strict=True):
        assert (one.loss, one.grad_norm) == (other.loss, other.grad_norm), one.step
    for one, other in zip(found.of(Evaluated), expected.of(Evaluated), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-14), one.step
    for name, value in expected.adapter.items():
        assert value.tobytes() == found.adapter[name].tobytes(), name


@pytest.mark.parametrize(
    ("method", "sizes"),
    [(METHODS[0], (2, 3, 4)), *((method, (2,)) for method in METHODS[1:])],
    ids=lambda each: getattr(each, "kind", ""),
)
def test_ranks_learn_what_one_process_learns(
    bench: Bench, llama: LocalModel, method: Method, sizes: tuple[int, ...]
) -> None:
    """Bit for bit: steps of five micro-batches in four parts, some of which have none."""
    open_on = opened(bench, llama, method)
    expected = trained(open_on(ALONE), ALONE)
    for size in sizes:
        for rank in in_ranks(size, lambda world: trained(open_on(world), world)):
            assert isinstance(rank, Trained), rank
            assert_same(rank, expected)


def test_a_slow_rank_computes_less_and_the_result_is_that_of_its_share(
    bench: Bench, llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_on = opened(bench, llama, Lora(rank=2, dropout=0.2))

    def uneven(world: ThreadWorld) -> Trained:
        session = open_on(world)
        gradients = session.engine.gradients

        def slowly(*args: object, **more: object) -> object:
            time.sleep(0.5 if world.rank == 1 else 0.0)
            return gradients(*args, **more)

        monkeypatch.setattr(session.engine, "gradients", slowly)
        return trained(session, world, schedule=SHORT, weights=(1, 1), by_speed=True)

    ranks = in_ranks(2, uneven)
    (shared,), (same,) = (rank.of(Shared) for rank in ranks)
    assert shared.state == same.state
    fast, slow = weights = shared.state.shares
    assert fast > 1.5 * slow
    for rank in ranks:
        (seen,) = rank.of(RanksSeen)
        assert [each.share for each in seen.ranks] == [fast / (fast + slow), slow / (fast + slow)]
        assert rank.of(SaveDue)[-1].state.shares == weights
        assert_same(rank, trained(open_on(ALONE), ALONE, schedule=SHORT, weights=weights))


def test_memory_that_runs_out_on_one_rank_repeats_the_step_on_all(
    bench: Bench, llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_on = opened(bench, llama, Lora(rank=2))
    expected = trained(open_on(ALONE), ALONE)
    calls = []

    def failing(world: ThreadWorld) -> Trained:
        session = open_on(world)
        gradients = session.engine.gradients

        def sometimes(*args: object, **more: object) -> object:
            calls.append(world.rank)
            if world.rank == 1 and calls.count(1) == 10:
                raise DeviceOutOfMemoryError("no memory is left")
            return gradients(*args, **more)

        monkeypatch.setattr(session.engine, "gradients", sometimes)
        return trained(session, world)

    for rank in in_ranks(2, failing):
        assert isinstance(rank, Trained), rank
        (recovered,) = rank.of(Recovered)
        assert recovered.rows == 1
        assert_near(rank, expected)


def test_a_wish_to_stop_on_one_rank_stops_all_after_the_same_step(
    bench: Bench, llama: LocalModel
) -> None:
    open_on = opened(bench, llama, Lora(rank=2))
    asked: dict[int, list[int]] = {0: [], 1: []}

    def stopping(world: ThreadWorld) -> Trained:
        def stop(step: int) -> bool:
            asked[world.rank].append(step)
            return world.rank == 1 and step >= 3

        return trained(open_on(world), world, stop=stop)

    found = in_ranks(2, stopping)
    assert [type(rank) for rank in found] == [StoppedError, StoppedError]
    assert asked[0] == asked[1] == [1, 2, 3]


def test_a_loss_that_runs_away_takes_all_ranks_back(bench: Bench, llama: LocalModel) -> None:
    open_on = opened(bench, llama, Lora(rank=2))
    wild = Schedule(steps=STEPS, eval_every=5, save_every=2, warmup=0, learning_rate=3e4)
    found = in_ranks(2, lambda world: _or_error(open_on(world), world, wild))
    one, other = found
    assert type(one) is type(other)
    if isinstance(one, Trained):
        assert [vars_of(e) for e in one.of(Rewound)] == [vars_of(e) for e in other.of(Rewound)]


def _or_error(session: Session, world: World, schedule: Schedule) -> Trained:
    return trained(session, world, schedule=schedule)


def vars_of(event: Event) -> tuple[object, ...]:
    return event.step, event.to, event.learning_rate


def test_memory_that_runs_out_behind_the_gradients_ends_all(
    bench: Bench, llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have taken the step by then: nobody may take it once more."""
    open_on = opened(bench, llama, Lora(rank=2))

    def failing(world: ThreadWorld) -> Trained:
        if world.rank == 1:
            monkeypatch.setattr(world, "add", _no_memory)
        return trained(open_on(world), world)

    one, other = in_ranks(2, failing)
    assert isinstance(one, LostRankError)
    assert isinstance(other, LostRankError)
    assert "Memory ran out on rank 1" in str(other)


def _no_memory(_: object) -> None:
    raise MemoryError


def test_what_fails_on_one_rank_ends_the_others(
    bench: Bench, llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_on = opened(bench, llama, Lora(rank=2))

    def failing(world: ThreadWorld) -> Trained:
        session = open_on(world)
        if world.rank == 1:
            monkeypatch.setattr(session.engine, "gradients", _broken)
        return trained(session, world)

    one, other = in_ranks(2, failing)
    assert isinstance(one, LostRankError)
    assert "Rank 1 failed" in str(one)
    assert isinstance(other, ZeroDivisionError)


def _broken(*_: object, **__: object) -> None:
    raise ZeroDivisionError
