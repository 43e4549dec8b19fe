"""A step happens whole or not at all, wherever in it memory runs out; so does all that is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from support.faults import FaultAt, State, Tally, attack, requests, same, spread, state_of

from conformance.cases import CASES, Case
from conformance.sessions import ROW, Bench, rows
from edgetune.backend import (
    DeviceOutOfMemoryError,
    GenerateOptions,
    Session,
    StepResult,
    TornStateError,
)
from edgetune.generation import generate
from edgetune.model import LocalModel

BATCHES = (rows(3, seed=1), rows(2, seed=2))
POINTS, POINTS_LONG = 3, 12
"""Requests that are disturbed: so many over a whole step, and the last ones, its update."""

OPTIONS = GenerateOptions(max_tokens=3)
LORA, FULL = CASES[0], next(case for case in CASES if case.name == "full")
OPTIMIZERS = {"torch": ("adamw", "adamw-8bit"), "mlx": ("adamw",)}
PLACES = ("resident", "checkpointed", "streamed", "offloaded")

every_method = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_place = pytest.mark.parametrize("place", PLACES)
trained = pytest.mark.parametrize("case", [LORA, FULL], ids=["lora", "full"])


def faults(backend: str) -> Iterator[tuple[FaultAt, Callable[[Session], bool]]]:
    """Yield the kinds of fault of a backend, and what is at rest there between steps."""
    if backend == "torch":
        from support import faults_torch

        yield partial(faults_torch.Fault, every=True), faults_torch.at_rest
        yield partial(faults_torch.Fault, every=False, sticky=True), faults_torch.at_rest
    else:
        from support import faults_mlx

        yield faults_mlx.Fault, lambda _: True
        yield partial(faults_mlx.Fault, sticky=True), lambda _: True


def _step(session: Session) -> StepResult:
    tokens = sum(batch.loss_tokens for batch in BATCHES)
    return session.step(BATCHES, loss_tokens=tokens, learning_rate=1e-2)


def _attacked(session: Session, backend: str, count: int) -> Tally:
    """Disturb the session's next step, in every kind of fault, and check what became of it."""
    tally = Tally()
    for fault_at, at_rest in faults(backend):
        total = requests(session, _step, fault_at)
        points = {*spread(total, count), *range(max(1, total - count), total + 1)}
        tally += attack(session, _step, fault_at, sorted(points), at_rest=at_rest)
    print(backend, tally)  # noqa: T201  # the long form is read
    assert not tally.wrong, "\n".join([str(tally), *tally.wrong[:20]])
    assert tally.undone
    return tally


def _places(bench: Bench) -> Mapping[str, Mapping[str, Any]]:
    return {"resident": {}, **bench.ways.places}


@every_method
def test_every_method(case: Case, bench: Bench, llama: LocalModel) -> None:
    session = bench.open(case, llama)
    _step(session)
    _attacked(session, bench.name, POINTS)


@trained
@every_place
def test_every_place_and_optimizer(case: Case, place: str, bench: Bench, wide: LocalModel) -> None:
    for optimizer in OPTIMIZERS[bench.name]:
        session = bench.open(case, wide, optimizer=optimizer, **_places(bench)[place])
        _step(session)
        assert _attacked(session, bench.name, POINTS).finished


@trained
def test_the_first_step(case: Case, bench: Bench, wide: LocalModel) -> None:
    for optimizer in OPTIMIZERS[bench.name]:
        _attacked(bench.open(case, wide, optimizer=optimizer), bench.name, POINTS)


@pytest.mark.long
@every_method
@every_place
def test_many_moments(case: Case, place: str, bench: Bench, wide: LocalModel) -> None:
    for optimizer in OPTIMIZERS[bench.name]:
        session = bench.open(case, wide, optimizer=optimizer, **_places(bench)[place])
        _step(session)
        _attacked(session, bench.name, POINTS_LONG)


def _attach(session: Session, adapter: Any) -> bytes:
    session.attach("other", LORA.method, adapter)
    try:
        return session.logits(ROW, adapter="other").tobytes()
    finally:
        session.detach("other")


CALLS: dict[str, Callable[[Session, State], Any]] = {
    "evaluate": lambda session, _: session.evaluate(BATCHES),
    "evaluate_rows": lambda session, _: session.evaluate_rows(BATCHES[0], [None, "own", "own"]),
    "generate": lambda session, _: list(generate(session, [ROW, ROW[:5]], OPTIONS)),
    "logits": lambda session, _: session.logits(ROW).tobytes(),
    "tensors": lambda session, _: [
        x.tobytes() for part in state_of(session) for x in part.values()
    ],
    "attach": lambda session, other: _attach(session, other[0]),
    "restore": lambda session, other: session.restore(*other),
}


@pytest.mark.parametrize("name", [name for name in CALLS if name != "tensors"])
def test_whatever_else_runs_out_is_named_and_can_be_asked_again(
    name: str, bench: Bench, llama: LocalModel
) -> None:
    call = CALLS[name]
    session, other = bench.open(LORA, llama), bench.open(LORA, llama, seed=1)
    for one in (session, other):
        _step(one)
    before, others = state_of(session), state_of(other)
    expected = call(session, others), state_of(session)
    for fault_at, _ in faults(bench.name):
        with fault_at(0) as counter:
            call(session, others)
        if not counter.count:  # what is restored lies in the place of what was there
            assert name == "restore"
            continue
        for point in spread(counter.count, 6):
            session.restore(*before)
            with fault_at(point), pytest.raises(DeviceOutOfMemoryError):
                call(session, others)
            assert name == "restore" or same(state_of(session), before)
            assert call(session, others) == expected[0]
            assert same(state_of(session), expected[1])


def test_a_restore_that_ran_out_is_done_again_before_anything_else(
    bench: Bench, llama: LocalModel
) -> None:
    session = bench.open(LORA, llama)
    _step(session)
    before = state_of(session)
    session.optimizer.torn = True  # type: ignore[attr-defined]
    for call in CALLS.values():
        if call is not CALLS["restore"]:
            with pytest.raises(TornStateError, match="last checkpoint"):
                call(session, before)
    session.restore(*before)

    assert same(state_of(session), before)


def test_opening_that_runs_out_is_named(bench: Bench, llama: LocalModel) -> None:
    for fault_at, _ in faults(bench.name):
        with fault_at(0) as counter:
            bench.open(LORA, llama)
        for point in spread(counter.count, 4):
            with (
                fault_at(point),
                pytest.raises(DeviceOutOfMemoryError, match="smaller --memory"),
            ):
                bench.open(LORA, llama)
