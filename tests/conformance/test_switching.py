"""Several adapters over one base: switched without reloading, mixed row by row, let go again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import micro_batch
from models import CARRYING, LONGROPE, make_model

from conformance.cases import CASES, Case
from conformance.sessions import ROW, Bench, rows, step
from edgetune.backend import DEFAULT_ADAPTER, GenerateOptions, Session
from edgetune.errors import ModelError, UsageError
from edgetune.generation import generate
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.settings.spec import Checkpointing

LORA = CASES[0]
FULL = next(case for case in CASES if case.kind == "full")
NAMES = (DEFAULT_ADAPTER, None, "other", "other", DEFAULT_ADAPTER)
"""The adapters of the rows of a mixed batch: neighbours alike and not."""

every_method = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def trained_pair(
    case: Case, bench: Bench, model: LocalModel, **knobs: Any
) -> tuple[Session, Session]:
    """Return a method's session, and one of LoRA in which the method's adapter is ``other``."""
    alone, mixed = bench.open(case, model, **knobs), bench.open(LORA, model, **knobs)
    step(alone, rows(seed=1), rate=case.rate)
    step(mixed, rows(seed=2), rate=LORA.rate)
    mixed.attach("other", case.method, alone.adapter_tensors())
    return alone, mixed


@every_method
def test_an_adapter_computes_the_same_beside_others(
    case: Case, bench: Bench, llama: LocalModel
) -> None:
    alone, mixed = trained_pair(case, bench, llama)
    base = alone.logits(ROW, adapter=None)

    np.testing.assert_allclose(mixed.logits(ROW, adapter="other"), alone.logits(ROW), atol=2e-5)
    assert not np.allclose(mixed.logits(ROW, adapter="other"), mixed.logits(ROW), atol=1e-3)
    np.testing.assert_array_equal(mixed.logits(ROW, adapter=None), base)
    mixed.detach("other")
    np.testing.assert_array_equal(mixed.logits(ROW, adapter=None), base)


@every_method
def test_rows_of_a_batch_may_have_different_adapters(
    case: Case, bench: Bench, llama: LocalModel
) -> None:
    alone, mixed = trained_pair(case, bench, llama)
    batch = rows(len(NAMES), seed=3)

    found = mixed.evaluate_rows(batch, NAMES)

    for row, (name, result) in enumerate(zip(NAMES, found, strict=True)):
        session, adapter = (alone, DEFAULT_ADAPTER) if name == "other" else (mixed, name)
        expected = session.evaluate([batch.rows(row, row + 1)], adapter=adapter)
        assert (result.rows, result.loss_tokens) == (1, expected.loss_tokens)
        assert result.loss_sum == pytest.approx(expected.loss_sum, rel=1e-4)


@pytest.mark.parametrize("places", ["checkpointed", "streamed"])
@every_method
def test_prompts_continued_together_get_what_they_get_alone(
    case: Case, places: str, bench: Bench, llama: LocalModel
) -> None:
    alone, mixed = trained_pair(case, bench, llama, **bench.ways.places[places])
    prompts = [ROW[: 3 + row] for row in (4, 0, 2, 1, 2)]
    options = GenerateOptions(max_tokens=5)
    found: list[list[int]] = [[] for _ in prompts]
    for row, token in generate(mixed, prompts, options, adapters=NAMES):
        found[row].append(token)

    for prompt, name, tokens in zip(prompts, NAMES, found, strict=True):
        session, adapter = (alone, DEFAULT_ADAPTER) if name == "other" else (mixed, name)
        expected = generate(session, [prompt], options, adapters=[adapter])
        assert tokens == [token for _, token in expected]


@pytest.mark.parametrize("family", CARRYING)
def test_what_layers_carry_goes_on_as_it_does_in_whole_rows(
    family: str, bench: Bench, tmp_path: Path
) -> None:
    model = LocalModel.open(make_model(tmp_path, family))
    alone, mixed = trained_pair(FULL, bench, model)
    prompts = [ROW[: 3 + row] for row in (4, 0, 2, 1, 2)]
    found: list[list[int]] = [[] for _ in prompts]
    for row, token in generate(mixed, prompts, GenerateOptions(max_tokens=5), adapters=NAMES):
        found[row].append(token)

    for prompt, name, tokens in zip(prompts, NAMES, found, strict=True):
        session, adapter = (alone, DEFAULT_ADAPTER) if name == "other" else (mixed, name)
        logits = np.asarray(session.logits([*prompt, *tokens], adapter=adapter))
        assert tokens == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_prompts_end_one_by_one_and_draw_as_they_do_alone(bench: Bench, llama: LocalModel) -> None:
    session = bench.open(LORA, llama)
    prompts = [ROW[: 3 + row] for row in range(5)]
    warm = GenerateOptions(max_tokens=12, temperature=1.0, seed=2)
    alone = [[t for _, t in generate(session, [prompt], warm)] for prompt in prompts]
    ends = frozenset(tokens[3 * row % 12] for row, tokens in enumerate(alone))
    found: list[list[int]] = [[] for _ in prompts]
    options = GenerateOptions(max_tokens=12, temperature=1.0, seed=2, end_tokens=ends)
    for row, token in generate(session, prompts, options):
        found[row].append(token)

    for tokens, whole in zip(found, alone, strict=True):
        stop = next(i for i, token in enumerate(whole) if token in ends)
        assert tokens == whole[: stop + 1]
    assert len({len(tokens) for tokens in found}) > 1


def test_answers_end_one_by_one_with_the_last_learned_position(
    bench: Bench, tmp_path: Path
) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "gpt2", n_positions=16))
    session = bench.open(LORA, model)
    prompts = [ROW[:4], ROW[:9]]
    counts = Counter(row for row, _ in generate(session, prompts, GenerateOptions(max_tokens=30)))

    assert counts == {row: 16 - len(prompt) + 1 for row, prompt in enumerate(prompts)}


def test_longrope_turns_each_document_by_its_own_length(bench: Bench, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "llama", rope_parameters=LONGROPE))
    session = bench.open(Lora(rank=3), model, context=40, checkpointing=Checkpointing(layers=1))
    together = micro_batch((9, 6, 2), (21,), width=23)
    spans = [(0, slice(0, 9)), (0, slice(9, 15)), (0, slice(15, 17)), (1, slice(0, 21))]
    alone = [
        replace(
            together, tokens=together.tokens[row : row + 1, span],
            targets=together.targets[row : row + 1, span], documents=((span.stop - span.start,),),
        )
        for row, span in spans
    ]  # fmt: skip
    assert session.evaluate([together]).loss_sum == pytest.approx(
        session.evaluate(alone).loss_sum, rel=1e-5
    )
    results = [
        session.step(batches, loss_tokens=together.loss_tokens, learning_rate=0.0)
        for batches in ([together], alone)
    ]
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-4)


def test_generation_goes_on_beyond_what_longrope_leaves_as_it_was(
    bench: Bench, tmp_path: Path
) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "llama", rope_parameters=LONGROPE))
    session = bench.open(LORA, model, context=40)
    for start in (3, 9, 14, 18):
        prompt = list(range(3, 3 + start))
        found = [token for _, token in generate(session, [prompt], GenerateOptions(max_tokens=9))]
        counts = range(len(found))
        assert found == [session.logits(prompt + found[:i])[-1].argmax() for i in counts]


def test_names_and_tensors_that_do_not_fit_are_refused(bench: Bench, llama: LocalModel) -> None:
    session = bench.open(LORA, llama)
    tensors = session.adapter_tensors()
    session.attach("other", LORA.method, tensors)
    for name in (DEFAULT_ADAPTER, "other"):
        with pytest.raises(UsageError, match="already"):
            session.attach(name, LORA.method, tensors)
    with pytest.raises(UsageError, match=r"no adapter named 'third'. There are: 'own', 'other'"):
        session.logits(ROW, adapter="third")
    with pytest.raises(UsageError, match="no adapter named 'third'"):
        session.detach("third")
    with pytest.raises(ModelError, match="is missing"):
        session.attach("third", LORA.method, dict(list(tensors.items())[1:]))
