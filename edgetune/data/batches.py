"""Examples as optimizer steps, each found by its number alone.

There is no iterator state: step 1,000 of a resumed run is what it would have been.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from edgetune.data.batch import MicroBatch
from edgetune.data.examples import Examples
from edgetune.data.mismatched import mismatched_batches, mismatched_pieces
from edgetune.data.rectangles import Piece, micro_batch_from
from edgetune.data.schedule import PackedSchedules, PaddedSchedules, Schedule, random_keys
from edgetune.data.token_store import Integers
from edgetune.errors import DataError
from edgetune.shares import Weights, dealt, halves_of, parts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step, as one rank sees it.

    ``micro_batches`` and ``rows`` (indices of the examples in them) are this rank's share, one of
    its parts after another, which can be empty in the last step of an epoch; ``loss_tokens``, ``terms`` (what the loss is
    divided by) and ``tokens`` count the whole step over all ranks. Of unpaired answers, the last
    micro-batches are those of the whole step after other prompts, the same on every rank.
    """

    micro_batches: tuple[MicroBatch, ...]
    rows: tuple[int, ...]
    loss_tokens: int
    terms: int
    tokens: int
    epoch: int


class Batches:
    """The steps of a run: every example once an epoch, in an order that the seed decides."""

    def __init__(
        self,
        examples: Examples,
        *,
        context: int,
        micro_batch: int,
        accumulation: int = 1,
        packing: bool,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Arrange the examples; ``micro_batch`` counts rows, ``accumulation`` micro-batches.

        ``accumulation`` is that of a whole step, and so is the order of the rows: the ranks of a
        ``world`` share its micro-batches as ``weights`` says, equally until it is set.

        Raises:
            DataError: if there are no examples, or one is longer than the context.
        """
        _check(examples, context)
        kind = PackedSchedules if packing else PaddedSchedules
        self._schedules = kind(examples.lengths, context, micro_batch)
        self._examples, self._loss_tokens = examples, examples.loss_tokens
        self._terms, self._micro_batch, self._packing = examples.terms, micro_batch, packing
        self._group, self._seed, self._rank, self._world = accumulation, seed, rank, world
        self.weights: Weights = (1,) * world
        """How much of a step each of its parts is; see :mod:`edgetune.shares`."""
        self._first = self._schedule_of(0)
        self._latest = 0, self._first

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last one can have fewer rows."""
        return -(-len(self._first) // self._group)

    @property
    def worst_shape(self) -> tuple[int, int]:
        """The largest (rows, length) that a micro-batch can have."""
        rows = int(np.diff(self._first.micro_batches).max())
        return rows, int(self._schedules.widths[-1])

    def worst_step(self, steps: int) -> int:
        """Return the step with the largest micro-batch, of equals the one with most under loss.

        It is one of the first ``steps`` of the first epoch; others have the same shapes.
        """
        first, count = self._first, min(len(self._first), steps * self._group)
        areas = np.diff(first.micro_batches) * first.widths
        starts = first.rows[first.micro_batches[:-1]]
        learned = np.add.reduceat(self._loss_tokens[first.order], starts)
        return int(np.lexsort((learned[:count], areas[:count]))[-1]) // self._group

    def worst_rectangles(self, steps: int) -> list[tuple[int, int]]:
        """Return the (rows, length) of every micro-batch of :meth:`worst_step`."""
        start = self.worst_step(steps) * self._group
        return self.rectangles[start : start + self._group]

    @property
    def mean_positions(self) -> float:
        """Tokens and padding of a step of the first epoch on average."""
        areas = np.diff(self._first.micro_batches) @ self._first.widths
        return float(areas) / self.steps_per_epoch

    @property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """Every (rows, length) of the first epoch."""
        return frozenset(_rectangles(self._first))

    @property
    def rectangles(self) -> list[tuple[int, int]]:
        """The (rows, length) of every micro-batch of the first epoch."""
        return _rectangles(self._first)

    @property
    def padding(self) -> float:
        """Share of all positions of the first epoch that are padding."""
        positions = int(np.diff(self._first.micro_batches) @ self._first.widths)
        return 1 - self._examples.token_count / positions

    def step(self, index: int) -> Step:
        """Return the step with this number, counted from 0 over all epochs."""
        epoch, within = divmod(index, self.steps_per_epoch)
        schedule = self._schedule(epoch)
        start = within * self._group
        stop = min(start + self._group, len(schedule))
        own = self._share(schedule, start, stop)
        everything = schedule.examples_of(start, stop)
        first = schedule.micro_batches[start]
        return Step(
            micro_batches=(
                *(
                    replace(
                        micro_batch_of(self._examples, schedule, i),
                        first=int(schedule.micro_batches[i] - first),
                        halves=halves,
                    )
                    for i, halves in own.items()
                ),
                *self._mismatched(everything),
            ),
            rows=tuple(int(row) for i in own for row in schedule.examples_of(i, i + 1)),
            loss_tokens=int(self._loss_tokens[everything].sum()),
            terms=int(self._terms[everything].sum()),
            tokens=int(self._examples.lengths[everything].sum()),
            epoch=epoch,
        )

    def _share(self, schedule: Schedule, start: int, stop: int) -> dict[int, tuple[int, ...]]:
        """Return which micro-batches of a step are this rank's, and where each is added."""
        areas = np.diff(schedule.micro_batches)[start:stop] * schedule.widths[start:stop]
        found = dealt(areas.tolist(), self.weights)
        parts = parts_of(self._rank, self._world, len(self.weights))
        return {
            start + number: halves_of(part - parts.start, len(parts))
            for part in parts
            for number, its in enumerate(found)
            if its == part
        }

    def _mismatched(self, rows: Integers) -> tuple[MicroBatch, ...]:
        """Return the answers of a step after other prompts, where the objective asks for them."""
        if self._examples.kind != "unpaired":
            return ()
        longest = int(self._examples.lengths.max())
        return mismatched_batches(
            mismatched_pieces(self._examples, rows, by=1, longest=longest),
            widths=self._schedules.widths,
            micro_batch=self._micro_batch,
            packing=self._packing,
        )

    def _schedule(self, epoch: int) -> Schedule:
        if self._latest[0] != epoch:
            self._latest = epoch, self._schedule_of(epoch)
        return self._latest[1]

    def _schedule_of(self, epoch: int) -> Schedule:
        return self._schedules.epoch(random_keys(self._seed, epoch, len(self._examples)))


def evaluation_batches(
    examples: Examples,
    *,
    context: int,
    micro_batch: int,
    rank: int = 0,
    weights: Weights = (),
    world: int = 1,
) -> Iterator[MicroBatch]:
    """Yield all examples once, one a row, shorter ones first; nothing at all if there are none.

    The ranks of a ``world`` share the micro-batches as ``weights`` says, equally without any.

    Unpaired answers come once more after other rows' prompts, half of the rows away: neighbours
    are often answers to one prompt.

    Raises:
        DataError: if an example is longer than the context.
    """
    if len(examples):
        _check(examples, context)
        schedules = PaddedSchedules(examples.lengths, context, micro_batch)
        schedule = schedules.by_length()
        areas = np.diff(schedule.micro_batches) * schedule.widths
        weights = weights or (1,) * world
        own = parts_of(rank, world, len(weights))
        for index, part in enumerate(dealt(areas.tolist(), weights)):
            if part in own:
                yield micro_batch_of(examples, schedule, index)
        if examples.kind == "unpaired":
            count, longest = len(examples), int(examples.lengths.max())
            pieces = mismatched_pieces(
                examples, np.arange(count), by=max(1, count // 2), longest=longest
            )
            yield from mismatched_batches(
                pieces, widths=schedules.widths, micro_batch=micro_batch, packing=False
            )


def evaluation_rectangles(
    examples: Examples, *, context: int, micro_batch: int
) -> list[tuple[int, int]]:
    """Return the (rows, length) of every micro-batch of :func:`evaluation_batches`."""
    if not len(examples):
        return []
    return _rectangles(PaddedSchedules(examples.lengths, context, micro_batch).by_length())


def _rectangles(schedule: Schedule) -> list[tuple[int, int]]:
    rows = np.diff(schedule.micro_batches).tolist()
    return list(zip(rows, schedule.widths.tolist(), strict=True))


def micro_batch_of(examples: Examples, schedule: Schedule, index: int) -> MicroBatch:
    """Return one micro-batch of a schedule."""
    rows = [[_piece(examples, one) for one in row.tolist()] for row in schedule.rows_of(index)]
    return micro_batch_from(rows, int(schedule.widths[index]))


def _piece(examples: Examples, index: int) -> Piece:
    (tokens, mask), shared = examples[index], int(examples.shared[index])
    sizes, kinds = examples.documents(index)
    if not shared:
        return Piece(tokens, mask, sizes, kinds)
    first, second = sizes
    own = np.delete(np.arange(len(tokens)), slice(first, first + shared))
    return Piece(tokens[own], mask[own], (first, second - shared), kinds, shared)


def _check(examples: Examples, context: int) -> None:
    if not len(examples):
        raise DataError("There are no examples to make batches of.")
    longest = int(examples.lengths.argmax())
    length = int(examples.lengths[longest])
    if length > context:
        raise DataError(
            f"{examples.place(longest)} has {length} tokens, more than the context of {context}."
            " Apply a length rule first, with Dataset.fit(context)."
        )
