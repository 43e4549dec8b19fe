"""KTO: a reference point of the whole step, then losses and gradients as in the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from preferences import PreferenceReference, Rated, rated, rated_examples
from support.threads import in_ranks

from conformance.objectives import LORA, STEPS, as_one, gradients_of, open_with, step_on
from conformance.sessions import Bench
from edgetune.backend import EvalResult, StepResult
from edgetune.data import Batches, evaluation_batches
from edgetune.data.batch import MicroBatch, split
from edgetune.data.mismatched import mismatched_batches, mismatched_pieces
from edgetune.data.rectangles import Piece, micro_batch_from
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.together import evaluated
from edgetune.world import ALONE, World

BETA, WEIGHTS = 0.3, (1.5, 0.5)
SETTINGS = {"beta": BETA, "desirable_weight": WEIGHTS[0], "undesirable_weight": WEIGHTS[1]}
WIDTH = 48


def _batches(rows: list[Rated], *, packed: bool) -> list[MicroBatch]:
    """Return a step on rows in their order, one a row or all in one."""
    examples = rated_examples(rows)
    pieces = [Piece(*examples[n], *examples.documents(n)) for n in range(len(rows))]
    laid = [pieces] if packed else [[piece] for piece in pieces]
    others = mismatched_pieces(examples, np.arange(len(rows)), by=1, longest=WIDTH)
    widths = np.array([2 * WIDTH if packed else WIDTH])
    width = int(widths[0])
    return [
        micro_batch_from(laid, width),
        *mismatched_batches(others, widths=widths, micro_batch=3, packing=packed),
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_losses_and_gradients_equal_the_paper(
    packing: bool, bench: Bench, llama: LocalModel
) -> None:
    rows = rated(25)
    reference = PreferenceReference(llama.folder, llama.shape, LORA)
    steps = Batches(
        rated_examples(rows), context=24, micro_batch=2, accumulation=1 if packing else 3,
        packing=packing, seed=3,
    )  # fmt: skip
    session, state = open_with(bench, llama, "kto", **SETTINGS), {}
    moved = 0.0
    for number in range(STEPS):
        step = steps.step(number)
        loss, point, expected = reference.kto_gradients(
            [rows[n] for n in step.rows], session.adapter_tensors(), beta=BETA, weights=WEIGHTS
        )
        result = step_on(session, *step.micro_batches, terms=step.terms)
        before, state = state, dict(session.optimizer_tensors())
        found, right = as_one(gradients_of(before, state)), as_one(expected)
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.metrics["kl"] == pytest.approx(point, rel=1e-4, abs=1e-5)
        assert np.linalg.norm(found - right) <= 1e-5 * np.linalg.norm(right)
        moved = max(moved, point)
    assert moved > 0.1


def test_packing_and_micro_batches_change_nothing(bench: Bench, llama: LocalModel) -> None:
    rows = rated(5, seed=1)
    whole = _batches(rows, packed=False)
    found = []
    for batches in (whole, _batches(rows, packed=True), split(whole, 1), split(whole, 2)):
        session = open_with(bench, llama, "kto", **SETTINGS)
        results = [step_on(session, *batches, terms=5) for _ in range(4)]
        assert results[-1].metrics["kl"] > 0
        found.append(([result.loss for result in results], as_one(session.adapter_tensors())))
    for losses, tensors in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-5)
        np.testing.assert_allclose(tensors, found[0][1], atol=2e-5)


def test_an_evaluation_in_parts_is_the_loss_of_the_next_step(
    bench: Bench, llama: LocalModel
) -> None:
    session, batches = open_with(bench, llama, "kto", **SETTINGS), _batches(rated(5), packed=False)
    for _ in range(3):
        total = EvalResult()
        for part in split(batches, 1):
            total += session.evaluate([part])
        total = total.settled()
        result = step_on(session, *batches, terms=5)
        assert (total.loss_tokens, total.rows) == (5, 5)
        assert total.loss_sum / 5 == pytest.approx(result.loss, rel=1e-5)
        assert total.metrics == pytest.approx(dict(result.metrics), rel=1e-4, abs=1e-5)
    base = session.evaluate(batches, adapter=None).settled()
    assert base.loss_sum == pytest.approx(sum(WEIGHTS[not row.desirable] / 2 for row in rated(5)))


def test_an_evaluation_does_not_depend_on_its_rows_at_once(bench: Bench, llama: LocalModel) -> None:
    session, examples = open_with(bench, llama, "kto"), rated_examples(rated(9))
    step_on(session, *_batches(rated(5), packed=False), terms=5)
    one, other = (
        session.evaluate(evaluation_batches(examples, context=24, micro_batch=rows)).settled()
        for rows in (1, 4)
    )
    assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-6)
    assert one.metrics["kl"] == pytest.approx(other.metrics["kl"], rel=1e-5)


def test_ranks_share_the_reference_point_of_a_step(bench: Bench, llama: LocalModel) -> None:
    examples = rated_examples(rated(9))  # one is alone in the last step: a rank has none of it

    def learned(world: World) -> tuple[list[StepResult], EvalResult, NDArray[Any]]:
        session = open_with(bench, llama, "kto", world=world, **SETTINGS)
        ranks = {"rank": world.rank, "world": world.size}
        batches = Batches(
            examples, context=24, micro_batch=1, accumulation=4, packing=False, seed=0, **ranks
        )
        results = []
        for number in range(2 * batches.steps_per_epoch):
            step = batches.step(number)
            results.append(step_on(session, *step.micro_batches, terms=step.terms))
        held = evaluation_batches(examples, context=24, micro_batch=2, **ranks)
        total = evaluated(world, session.evaluate(held).settled())
        return results, total, as_one(session.adapter_tensors())

    expected, total, adapter = learned(ALONE)
    assert max(result.metrics["kl"] for result in expected) > 0
    for rank in in_ranks(2, learned):
        assert not isinstance(rank, BaseException), rank
        assert [one.loss for one in rank[0]] == pytest.approx([one.loss for one in expected])
        assert rank[1].loss_sum == pytest.approx(total.loss_sum)
        assert (rank[1].rows, rank[1].loss_tokens) == (9, 9)
        assert rank[1].metrics == pytest.approx(total.metrics, rel=1e-4, abs=1e-6)
        assert np.linalg.norm(rank[2] - adapter) <= 5e-5 * np.linalg.norm(adapter)


def test_a_restored_session_goes_on_bit_for_bit(bench: Bench, llama: LocalModel) -> None:
    dropped = Lora(rank=4, dropout=0.2)
    one, other = (open_with(bench, llama, "kto", dropped) for _ in range(2))
    steps = [_batches(rated(4, seed=seed), packed=False) for seed in range(4)]
    for batches in steps[:2]:
        step_on(one, *batches, terms=4)
    other.restore(one.adapter_tensors(), one.optimizer_tensors())
    for batches in steps[2:]:
        assert step_on(one, *batches, terms=4) == step_on(other, *batches, terms=4)
    np.testing.assert_array_equal(as_one(one.adapter_tensors()), as_one(other.adapter_tensors()))
