"""Objectives over answers: losses and gradients equal those written from the papers."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from preferences import LOSSES, PreferenceReference, pairs

from conformance.objectives import LORA, STEPS, as_one, gradients_of, open_with, step_on
from conformance.sessions import Bench
from edgetune.data.batch import split
from edgetune.model import LocalModel


@pytest.mark.parametrize("objective", LOSSES)
def test_losses_and_gradients_equal_the_papers(
    objective: str, bench: Bench, llama: LocalModel
) -> None:
    reference = PreferenceReference(llama.folder, llama.shape, LORA)
    session, state = open_with(bench, llama, objective), {}
    for number in range(STEPS):
        batches = [pairs(3, seed=2 * number), pairs(2, seed=2 * number + 1, packed=2)]
        loss, expected = reference.gradients(objective, batches, session.adapter_tensors())
        result = step_on(session, *batches)
        before, state = state, dict(session.optimizer_tensors())
        found, right = as_one(gradients_of(before, state)), as_one(expected)
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
        session = open_with(bench, llama, objective)
        results = [step_on(session, *batches) for _ in range(3)]
        found.append(([result.loss for result in results], as_one(session.adapter_tensors())))
        assert results[-1].metrics["rewards/margins"] > results[0].metrics["rewards/margins"]
    for losses, tensors in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-5)
        np.testing.assert_allclose(tensors, found[0][1], atol=2e-5)


@pytest.mark.parametrize("objective", LOSSES)
def test_an_evaluation_is_the_loss_of_the_nextstep_on(
    objective: str, bench: Bench, llama: LocalModel
) -> None:
    session, batch = open_with(bench, llama, objective), pairs(4, packed=2)
    for _ in range(2):
        total = session.evaluate(split((batch,), 1))
        assert total.loss_tokens == 4
        result = step_on(session, batch)
        assert total.loss_sum / 4 == pytest.approx(result.loss, rel=1e-5)
        assert total.metrics == pytest.approx(dict(result.metrics), rel=1e-4, abs=1e-6)


def test_the_base_is_its_own_reference(bench: Bench, llama: LocalModel) -> None:
    session, batch = open_with(bench, llama, "dpo"), pairs(4)
    step_on(session, batch)
    total = session.evaluate([batch], adapter=None)
    assert total.loss_sum / total.loss_tokens == pytest.approx(log(2), rel=1e-12)
    assert total.correct == 0


@pytest.mark.parametrize("objective", LOSSES)
def test_a_restored_session_goes_on_bit_for_bit(
    objective: str, bench: Bench, llama: LocalModel
) -> None:
    one, other = (open_with(bench, llama, objective) for _ in range(2))
    batches = [pairs(3, seed=seed) for seed in range(4)]
    for batch in batches[:2]:
        step_on(one, batch)
    other.restore(one.adapter_tensors(), one.optimizer_tensors())
    for batch in batches[2:]:
        assert step_on(one, batch) == step_on(other, batch)
    np.testing.assert_array_equal(as_one(one.adapter_tensors()), as_one(other.adapter_tensors()))
