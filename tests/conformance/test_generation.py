"""Rows that join, leave and come back at any token, and what was cached of others: same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from models import CARRYING, LONGROPE, make_model

from conformance.cases import CASES, Case
from conformance.sessions import ROW, Bench, rows, step
from edgetune.backend import DEFAULT_ADAPTER, GenerateOptions, Session
from edgetune.generation import Generation, Row, generate
from edgetune.memory.generation import Room
from edgetune.model import LocalModel

LORA = CASES[0]
FAMILIES: dict[str, tuple[str, dict[str, Any], float]] = {
    "fused": ("llama", {}, 1.0),
    "windows and caps": ("gemma2", {"sliding_window": 6}, 1.0),
    "learned positions": ("gpt2", {}, 1.0),
    "slopes": ("bloom", {}, 1.0),
    "latents": ("deepseek_v3", {}, 1.0),
    **{family: (family, {}, 1.0) for family in CARRYING},
    "longrope": ("llama", {"rope_parameters": LONGROPE}, 0.4),
}
"""A family of each way to look back, and the least share of a chat's past that is read only once."""
OPTIONS = GenerateOptions(max_tokens=5)


def opened(case: Case, bench: Bench, model: LocalModel, **knobs: Any) -> tuple[Session, Generation]:
    """Return a trained session, and a generation in it that keeps caches."""
    session = bench.open(case, model, **knobs)
    step(session, rows(seed=1), rate=case.rate)
    plan = bench.plan(case, model, **knobs)
    return session, Generation(session, Room(model.shape, plan.choice, plan.memory), keeps=True)


def alone(session: Session, row: Row) -> list[int]:
    """Return the tokens of a row that is continued alone, from the beginning."""
    found = generate(session, [row.prompt], row.options, adapters=[row.adapter])
    return [*row.prompt, *(token for _, token in found)]


def ended(generation: Generation, *rows: Row) -> list[list[int]]:
    """Add rows, continue all to their ends, and return the tokens of these."""
    for row in rows:
        generation.add(row)
    while generation.rows:
        list(generation.step())
    return [row.tokens for row in rows]


def conversation(generation: Generation, adapter: str | None, turns: int = 3) -> list[Row]:
    """Return the rows of a chat: each begins with all of the one before."""
    found: list[Row] = []
    past: Sequence[int] = ROW[:4]
    for turn in range(turns):
        row = Row([*past, *ROW[turn : turn + 3]], OPTIONS, adapter)
        (past,) = ended(generation, row)
        found.append(row)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_chat_goes_on_from_what_was_read(case: Case, bench: Bench, llama: LocalModel) -> None:
    session, generation = opened(case, bench, llama)
    found = conversation(generation, DEFAULT_ADAPTER)

    assert generation.read_tokens == len(found[-1].tokens) - 1
    assert [row.tokens for row in found] == [alone(session, row) for row in found]


@pytest.mark.parametrize(("family", "changes", "share"), FAMILIES.values(), ids=list(FAMILIES))
def test_every_way_to_attend_goes_on(
    family: str, changes: dict[str, Any], share: float, bench: Bench, tmp_path: Path
) -> None:
    model = LocalModel.open(make_model(tmp_path, family, **changes))
    session, generation = opened(LORA, bench, model, context=40)
    found = conversation(generation, DEFAULT_ADAPTER)

    assert [row.tokens for row in found] == [alone(session, row) for row in found]
    anew = sum(len(row.tokens) - 1 for row in found)
    least = len(found[-1].tokens) - 1
    assert least <= generation.read_tokens <= anew - share * (anew - least)


def test_another_adapter_or_beginning_reads_everything(bench: Bench, llama: LocalModel) -> None:
    session, generation = opened(LORA, bench, llama)
    conversation(generation, DEFAULT_ADAPTER, turns=1)
    for adapter, prompt in ((None, ROW[:8]), (DEFAULT_ADAPTER, ROW[1:8])):
        before, row = generation.read_tokens, Row(prompt, OPTIONS, adapter)
        assert ended(generation, row) == [alone(session, row)]
        assert generation.read_tokens - before == len(row.tokens) - 1


def test_a_question_asked_otherwise_goes_on_from_where_they_part(
    bench: Bench, llama: LocalModel
) -> None:
    session, generation = opened(LORA, bench, llama)
    ended(generation, Row(ROW, OPTIONS))
    other = Row([*ROW[:8], 5, 6], OPTIONS)

    before = generation.read_tokens
    assert ended(generation, other) == [alone(session, other)]
    assert generation.read_tokens - before == len(other.tokens) - 1 - 8


@pytest.mark.parametrize("places", ["checkpointed", "streamed"])
def test_rows_join_and_leave_at_any_token(places: str, bench: Bench, llama: LocalModel) -> None:
    session, generation = opened(LORA, bench, llama, **bench.ways.places[places])
    warm = GenerateOptions(max_tokens=7, temperature=1.0, seed=3)
    all_rows = [
        Row(ROW[: 3 + number], OPTIONS if number % 2 else warm, None if number == 1 else "own")
        for number in range(5)
    ]
    waiting, suspended = list(all_rows), all_rows[2]
    for number in range(30):
        if waiting:
            generation.add(waiting.pop(0))
        list(generation.step())
        if number == 3:
            generation.suspend(suspended)
        if number == 5:
            generation.add(suspended)
    assert not generation.rows
    assert [row.tokens for row in all_rows] == [alone(session, row) for row in all_rows]


def test_kept_caches_make_way_for_rows(bench: Bench, llama: LocalModel) -> None:
    session, generation = opened(LORA, bench, llama)
    plan = bench.plan(LORA, llama)
    room = Room(llama.shape, plan.choice, plan.memory)
    size = next(n for n in range(20, 1 << 20, 20) if not room.holds([n, n]))
    long = GenerateOptions(max_tokens=size - 4, end_tokens=frozenset(range(97)))

    ended(generation, Row(ROW[:4], long))
    other = Row(ROW[4:8], long)
    generation.add(other)
    list(generation.step())
    before = generation.read_tokens
    again = Row(ROW[:6], OPTIONS)
    assert ended(generation, again) == [alone(session, again)]
    assert generation.read_tokens - before == len(again.tokens) - 1
