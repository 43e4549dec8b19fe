"""How many prompts are continued together: what is kept of them stays within the plan."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st
from planning import GB, plan_of, processor, shape_of, sized

from edgetune.memory.generation import MOST_ROWS, cache_bytes, longest_answer, rows_at_once
from edgetune.planning import Plan

LENGTHS = st.integers(1, 4096)
MODEL = "smollm2-360m"


@cache
def planned(gigabytes: int) -> Plan:
    return plan_of(MODEL, sized(processor(), gigabytes * GB))


@given(LENGTHS, LENGTHS, st.integers(1, 16))
def test_what_goes_together_fits_into_the_peak(prompt: int, answer: int, gigabytes: int) -> None:
    plan = planned(gigabytes)
    choice, parts, phases = plan.choice, plan.memory.parts, plan.memory.phases

    count = rows_at_once(shape_of(MODEL), choice, plan.memory, prompt=prompt, answer=answer)

    assert 1 <= count <= MOST_ROWS
    if count > 1:
        transient = phases.evaluate - parts.gradients - parts.optimizer
        cached = count * cache_bytes(shape_of(MODEL), choice, prompt + answer)
        assert transient + cached <= plan.memory.peak_bytes
        assert count * prompt <= choice.micro_batch * choice.context


@given(LENGTHS, LENGTHS, st.integers(1, 16))
def test_the_longest_answer_is_the_last_that_fits(prompt: int, most: int, gigabytes: int) -> None:
    plan, shape = planned(gigabytes), shape_of(MODEL)
    parts, phases = plan.memory.parts, plan.memory.phases
    transient = phases.evaluate - parts.gradients - parts.optimizer

    found = longest_answer(shape, plan.choice, plan.memory, prompt=prompt, most=most)

    def cached(answer: int) -> int:
        return cache_bytes(shape, plan.choice, prompt + answer)

    assert 1 <= found <= most
    if found > 1:
        assert transient + cached(found) <= plan.memory.peak_bytes
    if found < most:  # a little more takes what attention and logits take besides
        assert transient + cached(4 * (prompt + found)) > plan.memory.peak_bytes - 16 * parts.loss


def test_short_prompts_go_together() -> None:
    plan = planned(8)
    found = rows_at_once(shape_of(MODEL), plan.choice, plan.memory, prompt=60, answer=60)
    assert found == MOST_ROWS
