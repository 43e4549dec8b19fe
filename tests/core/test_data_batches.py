"""Every row once an epoch, any step by its number, nothing over the context, nothing split."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from data_support import examples_from
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.data import IGNORED, Batches, Examples, MicroBatch, evaluation_batches
from edgetune.data.length_buckets import WIDTHS, row_widths
from edgetune.data.pack import pack
from edgetune.errors import DataError

CONTEXT = 24
lengths_of = st.lists(st.integers(2, CONTEXT), min_size=1, max_size=40)
layouts = st.fixed_dictionaries(
    {
        "micro_batch": st.integers(1, 5),
        "accumulation": st.integers(1, 3),
        "packing": st.booleans(),
        "seed": st.integers(0, 5),
    }
)
checked = settings(derandomize=True, deadline=None, max_examples=60)


def examples_of(lengths: list[int]) -> Examples:
    """Examples whose tokens are all different; every third token is only read."""
    firsts = np.concatenate([[1], 1 + np.cumsum(lengths)]).tolist()
    rows = [list(range(first, first + n)) for first, n in zip(firsts, lengths, strict=False)]
    return examples_from(
        [(row, [token % 3 != 0 or len(row) == 2 for token in row]) for row in rows]
    )


def learned_by(micro_batch: MicroBatch) -> list[tuple[int, int, int]]:
    """(token, position, target) of all that is learned, in order."""
    where = micro_batch.targets != IGNORED
    parts = micro_batch.tokens[where], micro_batch.positions()[where], micro_batch.targets[where]
    return sorted(zip(*(part.tolist() for part in parts), strict=True))


def learned_in(examples: Examples) -> list[tuple[int, int, int]]:
    """The same, straight from the definition of a target."""
    return sorted(
        (int(tokens[t]), t, int(tokens[t + 1]))
        for tokens, mask in examples
        for t in range(len(tokens) - 1)
        if mask[t + 1]
    )


@checked
@given(lengths_of, layouts, st.integers(1, 3))
def test_every_row_is_trained_once_an_epoch(lengths, layout, world):
    examples = examples_of(lengths)
    ranks = [
        Batches(examples, context=CONTEXT, rank=r, world=world, **layout) for r in range(world)
    ]
    for epoch in range(2):
        numbers = range(epoch * ranks[0].steps_per_epoch, (epoch + 1) * ranks[0].steps_per_epoch)
        steps = [[batches.step(number) for batches in ranks] for number in numbers]
        every = list(chain.from_iterable(steps))
        assert sorted(row for step in every for row in step.rows) == list(range(len(lengths)))
        assert {step.epoch for step in every} == {epoch}
        micro_batches = [part for step in every for part in step.micro_batches]
        learned = chain.from_iterable(map(learned_by, micro_batches))
        assert sorted(learned) == learned_in(examples)
        for of_ranks in steps:
            parts = [part for step in of_ranks for part in step.micro_batches]
            assert {step.loss_tokens for step in of_ranks} == {sum(p.loss_tokens for p in parts)}
            assert {step.tokens for step in of_ranks} == {sum(p.real_tokens for p in parts)}


@checked
@given(lengths_of, layouts, st.randoms(use_true_random=False))
def test_any_step_is_found_by_its_number(lengths, layout, random):
    examples = examples_of(lengths)
    count = 3 * Batches(examples, context=CONTEXT, **layout).steps_per_epoch
    sequential = Batches(examples, context=CONTEXT, **layout)
    expected = [sequential.step(number) for number in range(count)]
    numbers = random.sample(range(count), count)
    resumed = Batches(examples, context=CONTEXT, **layout)
    for number in numbers:
        step = resumed.step(number)
        assert step.rows == expected[number].rows
        for part, other in zip(step.micro_batches, expected[number].micro_batches, strict=True):
            np.testing.assert_array_equal(part.tokens, other.tokens)
            np.testing.assert_array_equal(part.targets, other.targets)
            assert part.documents == other.documents


@checked
@given(lengths_of, layouts)
def test_shapes_are_few_and_bounded(lengths, layout):
    batches = Batches(examples_of(lengths), context=CONTEXT, **layout)
    steps = [batches.step(number) for number in range(batches.steps_per_epoch)]
    shapes = {part.tokens.shape for step in steps for part in step.micro_batches}
    rows, length = batches.worst_shape
    assert shapes == batches.shapes
    assert all(shape[0] <= rows and shape[1] <= length <= CONTEXT for shape in shapes)
    assert len({shape[1] for shape in shapes}) <= (1 if layout["packing"] else WIDTHS)
    assert all(len(step.micro_batches) <= layout["accumulation"] for step in steps)
    positions = sum(part.tokens.size for step in steps for part in step.micro_batches)
    assert batches.padding == pytest.approx(1 - sum(lengths) / positions)
    assert batches.mean_positions == pytest.approx(positions / len(steps))
    for count in (1, len(steps), len(steps) + 9):
        run = steps[:count]
        worst = steps[batches.worst_step(count)]
        assert largest(worst) == max(largest(step) for step in run)
        assert batches.worst_step(count) < count
        assert batches.worst_rectangles(count) == [x.tokens.shape for x in worst.micro_batches]


def largest(step):
    """Return the size of a step's largest micro-batch, and the most loss tokens of such a one."""
    return max((part.tokens.size, part.loss_tokens) for part in step.micro_batches)


@checked
@given(st.lists(st.integers(1, CONTEXT), max_size=60))
def test_packing_never_splits_or_overflows(lengths):
    row_of = pack(np.array(lengths, dtype=np.int32), CONTEXT)
    assert len(row_of) == len(lengths)
    filled = np.bincount(row_of, weights=lengths)
    assert (filled > 0).all()
    room = sorted(CONTEXT - filled)
    assert all(left >= 0 for left in room)
    # Best fit never leaves two rows of which one would go into the other.
    assert len(room) <= 1 or all(left < CONTEXT / 2 for left in room[:-1])


def test_packing_wastes_little():
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 5000).astype(np.int32).clip(2, 2048)
    rows = int(pack(lengths, 2048).max()) + 1
    assert int(lengths.sum()) / (rows * 2048) > 0.98


@checked
@given(lengths_of)
def test_widths_pad_no_more_than_one_width_would(lengths):
    array = np.array(lengths)
    widths = row_widths(array, CONTEXT)
    assert len(widths) <= WIDTHS
    assert widths[-1] >= array.max()
    assert (np.diff(widths) > 0).all()
    positions = widths[np.searchsorted(widths, array)].sum()
    assert positions <= len(array) * widths[-1]


@checked
@given(lengths_of, st.integers(1, 5), st.integers(1, 3))
def test_evaluation_sees_all_rows_once(lengths, micro_batch, world):
    examples = examples_of(lengths)
    options = {"context": CONTEXT, "micro_batch": micro_batch, "world": world}
    parts = [list(evaluation_batches(examples, rank=rank, **options)) for rank in range(world)]
    learned = chain.from_iterable(map(learned_by, chain.from_iterable(parts)))
    assert sorted(learned) == learned_in(examples)


def test_epochs_and_seeds_differ():
    examples = examples_of([5] * 40)
    for packing in (True, False):
        options = {"context": CONTEXT, "micro_batch": 2, "packing": packing}
        batches = Batches(examples, seed=0, **options)
        first = batches.step(0).rows
        assert first != batches.step(batches.steps_per_epoch).rows
        assert first != Batches(examples, seed=1, **options).step(0).rows


def test_company_in_a_packed_row_changes():
    batches = Batches(examples_of([8] * 30), context=24, micro_batch=1, packing=True, seed=0)
    together: Counter[frozenset[int]] = Counter()
    for number in range(3 * batches.steps_per_epoch):
        together[frozenset(batches.step(number).rows)] += 1
    assert len(together) > batches.steps_per_epoch


def test_padding_is_token_zero_without_a_target():
    step = Batches(examples_of([3]), context=24, micro_batch=1, packing=True, seed=0).step(0)
    (part,) = step.micro_batches
    assert part.documents == ((3,),)
    assert (part.tokens[0, 3:] == 0).all()
    assert (part.targets[0, 2:] == IGNORED).all()


def test_an_unfitted_row_is_named():
    with pytest.raises(DataError, match=r"rows.jsonl:2 has 9 tokens, more than the context of 8"):
        Batches(examples_of([3, 9]), context=8, micro_batch=1, packing=True, seed=0)


def test_no_examples_no_batches():
    empty = examples_of([])
    with pytest.raises(DataError, match="no examples"):
        Batches(empty, context=8, micro_batch=1, packing=False, seed=0)
    assert list(evaluation_batches(empty, context=8, micro_batch=1)) == []
