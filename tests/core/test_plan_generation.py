"""How many prompts are continued together: what is kept of them stays within the plan."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from hypothesis import given
from hypothesis import strategies as st
from planning import GB, plan_of, processor, shape_of, sized

from edgetune.memory.generation import MOST_ROWS, Room, cache_bytes
from edgetune.planning import Plan

LENGTHS = st.integers(1, 4096)
MODEL = "smollm2-360m"


@cache
def planned(gigabytes: int) -> Plan:
    return plan_of(MODEL, sized(processor(), gigabytes * GB))


def room_of(gigabytes: int) -> Room:
    plan = planned(gigabytes)
    return Room(shape_of(MODEL), plan.choice, plan.memory)


@given(st.lists(LENGTHS, min_size=1), st.lists(LENGTHS), st.integers(1, 16))
def test_what_goes_together_fits_into_the_peak(
    rows: list[int], kept: list[int], gigabytes: int
) -> None:
    plan, room = planned(gigabytes), room_of(gigabytes)
    choice, parts, phases = plan.choice, plan.memory.parts, plan.memory.phases

    if room.holds(rows, kept):
        assert len(rows) <= MOST_ROWS
        transient = phases.evaluate - parts.gradients - parts.optimizer
        cached = sum(cache_bytes(room.shape, choice, tokens) for tokens in (*rows, *kept))
        assert transient + cached <= plan.memory.peak_bytes
        assert room.holds(rows[:-1], kept)
        assert room.holds(rows, kept[:-1])
    if (count := room.prompts_at_once(rows[0])) > 1:
        assert count * rows[0] <= choice.micro_batch * choice.context


@given(LENGTHS, LENGTHS, st.integers(1, 16))
def test_the_longest_answer_is_the_last_that_fits(prompt: int, most: int, gigabytes: int) -> None:
    plan, shape = planned(gigabytes), shape_of(MODEL)
    parts, phases = plan.memory.parts, plan.memory.phases
    transient = phases.evaluate - parts.gradients - parts.optimizer

    found = room_of(gigabytes).longest_answer(prompt, most)

    def cached(answer: int) -> int:
        return cache_bytes(shape, plan.choice, prompt + answer)

    assert 1 <= found <= most
    if found > 1:
        assert transient + cached(found) <= plan.memory.peak_bytes
    if found < most:  # a little more takes what attention and logits take besides
        assert transient + cached(4 * (prompt + found)) > plan.memory.peak_bytes - 16 * parts.loss


def test_no_more_prompts_go_together_than_a_tile_has_tokens() -> None:
    plan = planned(8)
    choice = replace(plan.choice, tile=64, micro_batch=2)
    room = Room(shape_of(MODEL), choice, plan.memory)
    assert [room.prompts_at_once(tokens) for tokens in (32, 64, 2000)] == [4, 2, 1]


def test_short_prompts_go_together() -> None:
    room = room_of(8)
    assert room.holds([120] * MOST_ROWS)
    assert not room.holds([120] * (MOST_ROWS + 1))
    assert room.prompts_at_once(60) >= MOST_ROWS
