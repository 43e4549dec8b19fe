"""Objectives over answers: losses and gradients equal those written from the papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from preferences import LOSSES, PreferenceReference, pairs

from conformance.sessions import Bench
from edgetune.backend import Session, StepResult, Tensors
from edgetune.data.batch import MicroBatch, split
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.settings.spec import ADAMW

LORA = Lora(rank=4)
UNCLIPPED = 1e9
STEPS = 10
FIRST_MOMENT = ".exp_avg"


def _open(bench: Bench, model: LocalModel, objective: str, **fixed: Any) -> Session:
    spec = bench.plan(LORA, model, context=96, loss_chunk=16, **fixed).spec
    training = replace(spec.training, objective=objective, max_grad_norm=UNCLIPPED)
    session = bench.backend.open(replace(spec, training=training), model)
    bench.held.callback(session.close)
    return session


def _gradients(before: Tensors, after: Tensors) -> dict[str, NDArray[Any]]:
    """Return what a step added to the first moments: the gradients, where nothing is clipped."""
    found = {}
    for name in after:
        if name.endswith(FIRST_MOMENT):
            past = before[name] if name in before else np.zeros_like(after[name])
            grown = after[name].astype(np.float64) - ADAMW.beta1 * past.astype(np.float64)
            found[name.removesuffix(FIRST_MOMENT)] = grown.ravel() / (1 - ADAMW.beta1)
    return found


def _step(session: Session, *batches: MicroBatch) -> StepResult:
    terms = sum(len(batch.kinds) // 2 for batch in batches)
    return session.step(batches, loss_tokens=terms, learning_rate=1e-2)


def _as_one(tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(
        [np.asarray(tensors[name], np.float64).ravel() for name in sorted(tensors)]
    )


@pytest.mark.parametrize("objective", LOSSES)
def test_losses_and_gradients_equal_the_papers(
    objective: str, bench: Bench, llama: LocalModel
) -> None:
    reference = PreferenceReference(llama.folder, llama.shape, LORA)
    session, state = _open(bench, llama, objective), {}
    for number in range(STEPS):
        batches = [pairs(3, seed=2 * number), pairs(2, seed=2 * number + 1, packed=2)]
        loss, expected = reference.gradients(objective, batches, session.adapter_tensors())
        result = _step(session, *batches)
        before, state = state, dict(session.optimizer_tensors())
        found, right = _as_one(_gradients(before, state)), _as_one(expected)
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert np.linalg.norm(found - right) <= 1e-5 * np.linalg.norm(right)


@pytest.mark.parametrize("objective", LOSSES)
def test_packing_and_accumulation_change_nothing(
    objective: str, bench: Bench, llama: LocalModel
) -> None:
    whole = pairs(4, seed=1)
    ways = [(whole,), (pairs(4, seed=1, packed=2),), split((whole,), 1)]
    found = []
    for batches in ways:
        session = _open(bench, llama, objective)
        results = [_step(session, *batches) for _ in range(3)]
        found.append(([result.loss for result in results], _as_one(session.adapter_tensors())))
        assert results[-1].metrics["rewards/margins"] > results[0].metrics["rewards/margins"]
    for losses, tensors in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-5)
        np.testing.assert_allclose(tensors, found[0][1], atol=2e-5)


@pytest.mark.parametrize("objective", LOSSES)
def test_an_evaluation_is_the_loss_of_the_next_step(
    objective: str, bench: Bench, llama: LocalModel
) -> None:
    session, batch = _open(bench, llama, objective), pairs(4, packed=2)
    for _ in range(2):
        total = session.evaluate(split((batch,), 1))
        assert total.loss_tokens == 4
        result = _step(session, batch)
        assert total.loss_sum / 4 == pytest.approx(result.loss, rel=1e-5)
        assert total.metrics == pytest.approx(dict(result.metrics), rel=1e-4, abs=1e-6)


def test_the_base_is_its_own_reference(bench: Bench, llama: LocalModel) -> None:
    session, batch = _open(bench, llama, "dpo"), pairs(4)
    _step(session, batch)
    total = session.evaluate([batch], adapter=None)
    assert total.loss_sum / total.loss_tokens == pytest.approx(log(2), rel=1e-12)
    assert total.correct == 0


@pytest.mark.parametrize("objective", LOSSES)
def test_a_restored_session_goes_on_bit_for_bit(
    objective: str, bench: Bench, llama: LocalModel
) -> None:
    one, other = (_open(bench, llama, objective) for _ in range(2))
    batches = [pairs(3, seed=seed) for seed in range(4)]
    for batch in batches[:2]:
        _step(one, batch)
    other.restore(one.adapter_tensors(), one.optimizer_tensors())
    for batch in batches[2:]:
        assert _step(one, batch) == _step(other, batch)
    np.testing.assert_array_equal(_as_one(one.adapter_tensors()), _as_one(other.adapter_tensors()))
