"""Which rank computes what, and that the order of sums does not depend on how many there are."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from data_support import examples_from
from hypothesis import given, settings
from hypothesis import strategies as st
from support.threads import ThreadWorld, in_ranks

from edgetune.data import Batches, MicroBatch
from edgetune.data.batch import full_batch
from edgetune.events import RunState
from edgetune.pace import Pace
from edgetune.shares import Sharing, by_halves, dealt, halves_of, parts_of, sums_held, weights_of
from edgetune.together import in_halves
from edgetune.world import told

checked = settings(derandomize=True, deadline=None, max_examples=60)
worlds = st.integers(1, 9).flatmap(lambda parts: st.tuples(st.just(parts), st.integers(1, parts)))


def paired(one: str, other: str) -> str:
    return f"({one}{other})"


@checked
@given(worlds)
def test_any_world_adds_parts_in_the_same_order(sizes: tuple[int, int]) -> None:
    parts, world = sizes
    every = [chr(ord("a") + part) for part in range(parts)]
    owned = [parts_of(rank, world, parts) for rank in range(world)]
    assert list(chain(*owned)) == list(range(parts))
    ranks = [by_halves([every[part] for part in own], paired) for own in owned]
    assert by_halves(ranks, paired) == by_halves(every, paired)


@checked
@given(worlds)
def test_a_rank_adds_its_parts_as_the_whole_does_and_holds_as_much_as_is_planned(
    sizes: tuple[int, int],
) -> None:
    parts, world = sizes
    most = 0
    for rank in range(world):
        own = parts_of(rank, world, parts)
        batches = [
            replace(full_batch(1, 2, 9), first=part, halves=halves_of(part - own.start, len(own)))
            for part in own
        ]
        sums, held = [""], [0]

        def accumulate(batch: MicroBatch, sums: list[str] = sums) -> float:
            assert sums[0] == ""
            sums[0] = chr(ord("a") + batch.first)
            return 1.0

        def set_aside(sums: list[str] = sums, held: list[int] = held) -> str:
            held.append(held[-1] + 1)
            taken, sums[0] = sums[0], ""
            return taken

        def add_back(taken: str, sums: list[str] = sums, held: list[int] = held) -> None:
            held.append(held[-1] - 1)
            sums[0] = paired(taken, sums[0])

        assert in_halves(batches, accumulate, set_aside, add_back) == len(own)
        assert sums[0] == by_halves([chr(ord("a") + part) for part in own], paired)
        assert held[-1] == 0
        most = max(most, *held)
    assert most == sums_held(world, parts)


def test_a_part_without_micro_batches_changes_nothing() -> None:
    batches = [replace(full_batch(1, 2, 9), halves=halves_of(part, 4)) for part in (0, 2, 2)]
    found: list[int] = []
    assert in_halves(batches, lambda _: 1.0, lambda: found.append(1), lambda _: None) == 3
    assert len(found) == 1


@pytest.mark.parametrize(
    ("speeds", "parts", "weights"),
    [
        ([5.0, 5.0], 2, (1, 1)),
        ([5.0, 4.1], 2, (1, 1)),
        ([5.0, 0.0], 2, (1, 1)),
        ([4.0, 1.0], 2, (4, 1)),
        ([4.0, 1.0], 4, (4, 4, 1, 1)),
        ([4.0, 1.0], 3, (2, 2, 1)),
        ([1.0, 1000.0], 2, (1, 32)),
    ],
)
def test_shares_follow_speeds(speeds: list[float], parts: int, weights: tuple[int, ...]) -> None:
    assert weights_of(speeds, parts) == weights


def test_a_slow_rank_does_not_hold_a_fast_one() -> None:
    parts = dealt([7] * 8, (3, 1))
    assert [parts.count(part) for part in (0, 1)] == [6, 2]


@checked
@given(
    st.lists(st.integers(2, 24), min_size=1, max_size=40),
    st.lists(st.integers(1, 9), min_size=3, max_size=5),
    st.booleans(),
)
def test_the_rows_of_a_step_are_the_same_whatever_the_shares(
    lengths: list[int], weights: list[int], packing: bool
) -> None:
    examples = examples_from([(list(range(n)), [True] * n) for n in lengths])
    layout = {"context": 24, "micro_batch": 2, "accumulation": 4, "packing": packing, "seed": 1}
    alone = Batches(examples, **layout)
    ranks = [Batches(examples, **layout, rank=rank, world=3) for rank in range(3)]
    for each in ranks:
        each.weights = tuple(weights)
    for number in range(alone.steps_per_epoch):
        steps = [each.step(number) for each in ranks]
        expected = {batch.first: batch for batch in alone.step(number).micro_batches}
        found = {batch.first: batch for step in steps for batch in step.micro_batches}
        assert found.keys() == expected.keys()
        for first, batch in found.items():
            np.testing.assert_array_equal(batch.tokens, expected[first].tokens)


def test_ranks_share_by_what_the_pilot_took() -> None:
    """A rank that waits longer than it works is no slow one."""
    dealt_out = {}

    def piloted(world: ThreadWorld) -> tuple[object, list[str]]:
        sharing = Sharing(
            parts=2, by_speed=True, deal=lambda weights: dealt_out.update({world.rank: weights})
        )
        pace = Pace(world, sharing)
        with pace.step():
            world.waited -= (100, 400)[world.rank]  # as if it had worked so long
        texts = told(world, f"rank {world.rank} of a müller's machine" + "!" * world.rank)
        return pace.shared(RunState(), 100, 410), texts

    (one, texts), (other, same) = in_ranks(2, piloted)
    assert one == other
    assert one.state.shares == (4, 1)
    assert dealt_out == {0: one.state.shares, 1: one.state.shares}
    assert one.gain == pytest.approx(200 / (160 + 10), rel=1e-3)
    assert texts == same == ["rank 0 of a müller's machine", "rank 1 of a müller's machine!"]
