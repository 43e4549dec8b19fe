"""Every method on every backend is what the literature says it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conformance.cases import CASES, Case
from conformance.probes import Arrays, probe
from conformance.sessions import ROW, Bench, lesson, loss_of, packed, rows, step
from edgetune.adapters import LoadedAdapter, load_adapter, save_adapter
from edgetune.backend import GenerateOptions
from edgetune.errors import UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.generation import generate
from edgetune.methods import METHODS
from edgetune.model import LocalModel

every_method = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
STEPS = 30


def directions(trained: Arrays) -> Arrays:
    """Return a random direction, of the same length in every tensor."""
    draw = np.random.default_rng(3)
    found = {name: draw.normal(size=x.shape) for name, x in trained.items()}
    return {n: (x / np.linalg.norm(x)).astype(np.float32) for n, x in found.items()}


def test_the_suite_has_every_method() -> None:
    assert {case.kind for case in CASES} == set(METHODS)


@every_method
def test_counts_equal_the_formula(case: Case, bench: Bench, llama: LocalModel) -> None:
    session, expected = bench.open(case, llama), case.parameters(llama.shape)

    assert case.method.parameters(llama.shape) == expected
    assert bench.plan(case, llama).to_json()["choice"]["trainable_parameters"] == expected
    assert sum(x.size for x in probe(bench.name, session).trained().values()) == expected


@every_method
def test_the_start_is_the_base(case: Case, bench: Bench, llama: LocalModel) -> None:
    session = bench.open(case, llama)
    adapted, base = session.logits(ROW), session.logits(ROW, adapter=None)

    if case.identity:
        np.testing.assert_allclose(adapted, base, rtol=0, atol=2e-5)
    else:
        assert np.isfinite(adapted).all()
        assert abs(loss_of(session, rows()) - loss_of(session, rows(), adapter=None)) < 1


@every_method
def test_gradients_equal_finite_differences(case: Case, bench: Bench, llama: LocalModel) -> None:
    session, batch, small = bench.open(case, llama), rows(), 1.5e-3
    for _ in range(2):  # away from the start, where half of the gradients are zero
        step(session, batch, rate=case.rate)
    looked = probe(bench.name, session)
    gradients, direction = looked.gradients(batch), directions(looked.trained())
    for name in direction:
        alone = {n: x if n == name else np.zeros_like(x) for n, x in direction.items()}
        slope = float((gradients[name] * direction[name]).sum())
        losses = []
        for length in (small, -small):
            with looked.moved(alone, length):
                losses.append(looked.loss(batch))

        found = (losses[0] - losses[1]) / (2 * small)
        assert found == pytest.approx(slope, rel=2e-2, abs=2e-2), name


@every_method
def test_eight_rows_are_learned_and_the_base_stays(
    case: Case, bench: Bench, llama: LocalModel
) -> None:
    session, batch = bench.open(case, llama), lesson()
    looked = probe(bench.name, session)
    frozen, base = looked.frozen(), session.logits(ROW, adapter=None)
    for _ in range(STEPS):
        step(session, batch, rate=case.rate)

    assert loss_of(session, batch) < 0.2 * loss_of(session, batch, adapter=None)
    assert looked.frozen() == frozen
    np.testing.assert_array_equal(session.logits(ROW, adapter=None), base)


@every_method
def test_a_saved_adapter_computes_the_same(
    case: Case, bench: Bench, llama: LocalModel, tmp_path: Path
) -> None:
    session = bench.open(case, llama)
    step(session, rows(), rate=case.rate)
    save_adapter(tmp_path, case.method, llama.shape, session.adapter_tensors(), base="tiny")
    loaded = load_adapter(tmp_path, llama.shape)
    other = bench.open(loaded.method, llama)
    other.restore(loaded.tensors)

    same_bits = case.method.on_disk().tensors(llama.shape) == case.method.tensors(llama.shape)
    tolerance = 0 if same_bits else 2e-5
    np.testing.assert_allclose(other.logits(ROW), session.logits(ROW), rtol=0, atol=tolerance)
    assert loaded.tensors.keys() == session.adapter_tensors().keys()


@every_method
def test_a_resumed_session_goes_on_bit_for_bit(case: Case, bench: Bench, llama: LocalModel) -> None:
    session, batch = bench.open(case, llama), rows()
    step(session, batch, rate=case.rate)
    resumed = bench.open(case, llama)
    resumed.restore(session.adapter_tensors(), session.optimizer_tensors())

    assert step(resumed, batch) == step(session, batch)
    for name, value in session.adapter_tensors().items():
        np.testing.assert_array_equal(resumed.adapter_tensors()[name], value)


@every_method
def test_the_merged_model_computes_the_same(
    case: Case, bench: Bench, llama: LocalModel, tmp_path: Path
) -> None:
    session = bench.open(case, llama)
    step(session, rows(), rate=case.rate)
    adapter = LoadedAdapter(
        method=case.method.on_disk(), tensors=dict(session.adapter_tensors()), base=None
    )
    request = ExportRequest(adapter=adapter, model=llama, output=tmp_path / "merged")
    if not case.method.mergeable:
        with pytest.raises(UsageError, match="cannot be merged"):
            export("hf", request)
        return
    export("hf", request)
    merged = bench.open(CASES[0], LocalModel.open(tmp_path / "merged"))

    found = merged.logits(ROW, adapter=None)
    np.testing.assert_allclose(found, session.logits(ROW), rtol=1e-5, atol=1e-5)


@every_method
def test_parts_of_a_batch_and_packed_rows_equal_the_whole(
    case: Case, bench: Bench, llama: LocalModel
) -> None:
    batch = rows()
    # each micro-batch draws its own dropout
    method = case.method.__class__(**{**case.settings, **_without_dropout(case)})
    sessions = [bench.open(method, llama) for _ in range(3)]
    steps = [
        [step(sessions[0], batch), step(sessions[0], batch)],
        [step(sessions[1], batch.rows(0, 1), batch.rows(1, 4)) for _ in range(2)],
        [step(sessions[2], packed(batch)) for _ in range(2)],
    ]

    for parts in steps[1:]:
        np.testing.assert_allclose(parts, steps[0], rtol=2e-4)


def _without_dropout(case: Case) -> dict[str, float]:
    return {"dropout": 0.0} if "dropout" in case.settings else {}


@every_method
def test_a_seed_is_all_the_randomness(case: Case, bench: Bench, llama: LocalModel) -> None:
    found = []
    for _ in range(2):
        session = bench.open(case, llama, seed=3)
        results = [step(session, rows()) for _ in range(3)]
        found.append((results, {n: x.tobytes() for n, x in session.adapter_tensors().items()}))

    assert found[0] == found[1]


@every_method
def test_generation_takes_the_most_probable_token(
    case: Case, bench: Bench, llama: LocalModel
) -> None:
    session = bench.open(case, llama)
    step(session, rows(), rate=case.rate)
    row = list(ROW)

    for _, token in generate(session, [ROW], GenerateOptions(max_tokens=4)):
        assert token == int(session.logits(row)[-1].argmax())
        row.append(token)


@every_method
def test_what_was_trained_is_what_is_evaluated(case: Case, bench: Bench, llama: LocalModel) -> None:
    trained, restored = bench.open(case, llama), bench.open(case, llama, seed=1)
    step(trained, rows(seed=1), rate=case.rate)
    restored.restore(trained.adapter_tensors(), trained.optimizer_tensors())

    np.testing.assert_array_equal(trained.logits(ROW), restored.logits(ROW))
