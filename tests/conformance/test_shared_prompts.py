"""The two answers of a pair share their prompt: less is computed, and what comes out is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import RECURRENT, make_model
from preferences import paired_examples

from conformance.cases import CASES
from conformance.objectives import STEPS, as_one, gradients_of, open_with, step_on
from conformance.sessions import Bench
from edgetune.data import Batches, evaluation_batches
from edgetune.data.batch import MicroBatch
from edgetune.data.examples import Examples
from edgetune.methods import build
from edgetune.methods.base import Method
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel

FAMILIES = ("gemma2", "bloom", "gpt_oss", "ministral3", "falcon")
"""Windows and caps; slopes; windows and sinks; queries that grow; keys that heads share."""
MORE = (
    "gemma3_text", "gemma4_text", "gpt2", "qwen3_moe", "deepseek_v2", "olmo3", "gpt_neox", "cohere2", "mpt", "opt",
)  # fmt: skip
WITHOUT_PREFIX = ("gemma4_text", "deepseek_v2")
BY_KIND = {case.kind: case for case in CASES if "dropout" not in case.settings}
"""Dropout draws for every position that is computed: fewer of them are other draws."""
CONTEXT, PAIRS = 144, 4
FEW = 3


@pytest.fixture(scope="module")
def pairs() -> Examples:
    return paired_examples(PAIRS * STEPS)


@pytest.mark.parametrize(
    ("objective", "packing"),
    [("dpo", True), ("dpo", False), ("ipo", True), ("orpo", True), ("simpo", True)],
)
def test_every_objective_is_the_same(
    objective: str, packing: bool, bench: Bench, llama: LocalModel, pairs: Examples
) -> None:
    _compare(bench, llama, Lora(rank=4), pairs, objective=objective, packing=packing)


@pytest.mark.parametrize("kind", BY_KIND)
def test_every_method_is_the_same(
    kind: str, bench: Bench, llama: LocalModel, pairs: Examples
) -> None:
    _compare(bench, llama, BY_KIND[kind].method, pairs)


@pytest.mark.parametrize(
    ("family", "steps", "method"),
    [
        *((family, FEW, method) for family in FAMILIES for method in ("lora", "prefix")),
        *(
            pytest.param(family, STEPS, method, marks=pytest.mark.long)
            for family in FAMILIES + MORE
            for method in (("lora",) if family in WITHOUT_PREFIX else ("lora", "prefix"))
        ),
    ],
)
def test_every_family_is_the_same(
    family: str, steps: int, method: str, bench: Bench, tmp_path: Path, pairs: Examples
) -> None:
    model = LocalModel.open(make_model(tmp_path, family))
    noise = {"prefix_length": 3, "prefix_initial": "random"}
    built = build(method, {"rank": 4} if method == "lora" else noise)
    _compare(bench, model, built, pairs.take(np.arange(PAIRS * steps)))


def test_an_evaluation_is_the_same(bench: Bench, llama: LocalModel, pairs: Examples) -> None:
    session = open_with(bench, llama, "dpo")
    step_on(session, *_steps(pairs, packing=True)[0])
    found = []
    for examples in (pairs, pairs.sharing_prompts()):
        batches = evaluation_batches(examples, context=CONTEXT, micro_batch=3)
        found.append(session.evaluate(list(batches)))
    assert found[1].loss_sum == pytest.approx(found[0].loss_sum, rel=1e-5)
    assert found[1].metrics == pytest.approx(dict(found[0].metrics), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("family", RECURRENT)
def test_what_goes_on_from_one_token_only_is_refused(
    family: str, bench: Bench, tmp_path: Path, pairs: Examples
) -> None:
    model = LocalModel.open(make_model(tmp_path, family))
    session = open_with(bench, model, "dpo")
    with pytest.raises(ValueError, match="cannot go on from another one"):
        step_on(session, *_steps(pairs.sharing_prompts(), packing=True)[0])


def _compare(
    bench: Bench, model: LocalModel, method: Method, pairs: Examples,
    *, objective: str = "dpo", packing: bool = True,
) -> None:  # fmt: skip
    """Take steps both ways, each from one state: an optimizer would make rounding errors grow."""
    sessions = [open_with(bench, model, objective, method) for _ in range(2)]
    ways = (_steps(examples, packing=packing) for examples in (pairs, pairs.sharing_prompts()))
    state: dict[str, Any] = {}
    for apart, together in zip(*ways, strict=True):
        assert 0 < _positions(together) < _positions(apart)
        losses = [
            step_on(session, *batches).loss
            for session, batches in zip(sessions, (apart, together), strict=True)
        ]
        after = [dict(session.optimizer_tensors()) for session in sessions]
        right, found = (as_one(gradients_of(state, each)) for each in after)
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert np.linalg.norm(found - right) <= 1e-5 * np.linalg.norm(right)
        state = after[0]
        sessions[1].restore(sessions[0].adapter_tensors(), state)


def _steps(examples: Examples, *, packing: bool) -> list[tuple[MicroBatch, ...]]:
    """Return every pair once, in steps of the same pairs however they are arranged."""
    found = []
    for start in range(0, len(examples), PAIRS):
        part = examples.take(np.arange(start, start + PAIRS))
        batches = Batches(
            part, context=CONTEXT, micro_batch=2, accumulation=2, packing=packing, seed=0
        )
        found.append(batches.step(0).micro_batches)
    return found


def _positions(batches: Sequence[MicroBatch]) -> int:
    return sum(batch.real_tokens for batch in batches)
