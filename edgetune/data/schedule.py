"""Which examples go into which row and micro-batch, for any epoch, from a seed alone.

Legend: N examples, R rows, M micro-batches. The number of rows and micro-batches is the same
in every epoch, so a step number alone says which epoch it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgetune.data.examples import ranges
from edgetune.data.length_buckets import row_widths
from edgetune.data.pack import pack
from edgetune.data.token_store import Counts, Integers


@dataclass(frozen=True, slots=True)
class Schedule:
    """One epoch: ``order`` (N,) examples, ``rows`` (R + 1,) where each row begins in it,
    ``micro_batches`` (M + 1,) where each micro-batch begins in the rows, ``widths`` (M,).
    """

    order: Integers
    rows: Integers
    micro_batches: Integers
    widths: Integers

    def __len__(self) -> int:
        """Return the number of micro-batches."""
        return len(self.widths)

    def examples_of(self, start: int, stop: int) -> Integers:
        """Return the examples of the micro-batches from ``start`` to ``stop``."""
        return self.order[
            self.rows[self.micro_batches[start]] : self.rows[self.micro_batches[stop]]
        ]

    def rows_of(self, micro_batch: int) -> list[Integers]:
        """Return the examples of each row of one micro-batch."""
        first, last = self.micro_batches[micro_batch], self.micro_batches[micro_batch + 1]
        bounds = self.rows[first : last + 1]
        return [self.order[start:stop] for start, stop in pairwise(bounds)]

    def shuffled(self, keys: Integers) -> Schedule:
        """Return the micro-batches in the order of ``keys``; a smaller last one stays last."""
        sizes = np.diff(self.micro_batches)
        order = np.lexsort((keys[: len(self)], sizes < sizes.max(initial=0)))
        rows, micro_batches = ranges(self.micro_batches[:-1][order], self.micro_batches[1:][order])
        examples, starts = ranges(self.rows[:-1][rows], self.rows[1:][rows])
        return Schedule(self.order[examples], starts, micro_batches, self.widths[order])


def random_keys(seed: int, epoch: int, count: int) -> Integers:
    """Return ``count`` numbers that depend on nothing else than the seed and the epoch.

    Raw generator output is the only stream that numpy promises never to change (NEP 19).
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.asarray(raw >> np.uint64(1), dtype=np.int64)


class PackedSchedules:
    """Rows of exactly ``context`` tokens, each holding as many whole examples as fit."""

    def __init__(self, lengths: Counts, context: int, micro_batch: int) -> None:
        """Pack once; epochs differ in the order and in which examples of a length meet."""
        row_of = pack(lengths, context)
        self._slots = np.argsort(row_of, kind="stable")
        self._rows = np.concatenate([[0], np.cumsum(np.bincount(row_of))])
        self._lengths, self._micro_batch = lengths, micro_batch
        self.widths = np.array([context], dtype=np.int64)

    def epoch(self, keys: Integers) -> Schedule:
        """Return the schedule of the epoch with these random keys, (N,)."""
        # Examples of one length trade places, so rows are not the same company every epoch.
        order = np.empty_like(self._slots)
        by_length = np.argsort(self._lengths[self._slots], kind="stable")
        order[by_length] = np.lexsort((keys, self._lengths))
        row_order = np.argsort(keys[: len(self._rows) - 1], kind="stable")
        examples, rows = ranges(self._rows[:-1][row_order], self._rows[1:][row_order])
        bounds = _every(self._micro_batch, len(row_order))
        return Schedule(order[examples], rows, bounds, np.repeat(self.widths, len(bounds) - 1))


class PaddedSchedules:
    """One example a row, padded to one of a few widths; similar lengths go together."""

    def __init__(self, lengths: Counts, context: int, micro_batch: int) -> None:
        """Choose the widths from the lengths."""
        self.widths = row_widths(lengths, context)
        self._width_of = self.widths[np.searchsorted(self.widths, lengths)]
        self._micro_batch = micro_batch

    def epoch(self, keys: Integers) -> Schedule:
        """Return the schedule of the epoch with these random keys, (N,)."""
        return self.in_order(np.lexsort((keys, self._width_of))).shuffled(keys)

    def in_order(self, order: Integers) -> Schedule:
        """Return micro-batches of the examples as they stand in ``order``, widths rising."""
        bounds = _every(self._micro_batch, len(order))
        widths = self._width_of[order][bounds[1:] - 1]
        return Schedule(order, np.arange(len(order) + 1), bounds, widths)

    def by_length(self) -> Schedule:
        """Return the schedule without chance, as evaluation wants it."""
        return self.in_order(np.argsort(self._width_of, kind="stable"))


def _every(size: int, count: int) -> Integers:
    return np.append(np.arange(0, count, size), count)
