"""A step happens whole or not at all, wherever in it memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from support.faults import FaultAt, Tally, attack, requests, spread

from conformance.cases import CASES, Case
from conformance.sessions import Bench, rows
from edgetune.backend import Session, StepResult
from edgetune.model import LocalModel

BATCHES = (rows(3, seed=1), rows(2, seed=2))
OPTIMIZERS = {"torch": ("adamw", "adamw-8bit"), "mlx": ("adamw",)}
UPDATE = 40
"""Requests at the end of a step that are disturbed one by one."""

every_method = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


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


def attacked(session: Session, backend: str, count: int) -> Tally:
    """Disturb the session's next step at ``count`` points a kind of fault and in the update."""
    tally = Tally()
    for fault_at, at_rest in faults(backend):
        total = requests(session, _step, fault_at)
        points = {*spread(total, count), *range(max(1, total - count), total + 1)}
        tally += attack(session, _step, fault_at, sorted(points), at_rest=at_rest)
    return tally


def _step(session: Session) -> StepResult:
    tokens = sum(batch.loss_tokens for batch in BATCHES)
    return session.step(BATCHES, loss_tokens=tokens, learning_rate=1e-2)


def _check(tally: Tally) -> None:
    assert not tally.wrong, "\n".join([str(tally), *tally.wrong[:20]])
    assert tally.undone


@every_method
def test_every_method(case: Case, bench: Bench, llama: LocalModel) -> None:
    session = bench.open(case, llama)
    _step(session)
    _check(attacked(session, bench.name, 4))
