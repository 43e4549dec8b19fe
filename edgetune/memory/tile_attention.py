"""Bytes of a tile's attention, line by line as the torch engine computes it in pieces.

B rows, H heads, G key/value heads, N positions of a tile, S of a row, n queries and K keys of a
piece, h channels of a head, P keys in front of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.memory.sized import Gradient, Sized, Storage, Tape
from edgetune.shape import Attention
from edgetune.storage import FLOAT32_BYTES

KEYS = 2048
"""Keys of a piece that a kernel attends to."""

SCORED_QUERIES, SCORED_KEYS = 256, 512
"""Queries and keys whose scores are held at once where there is no kernel."""

INDEX = 8
"""Bytes of a position."""

STATISTICS = 4
"""Numbers a query that are there while what is known of a softmax is put together."""


@dataclass(slots=True)
class SizedTile:
    """The tile that is computed, ``start`` positions of a row of ``positions`` before it.

    ``own`` are its keys and values, which a pass with gradients keeps. The first ``read`` positions
    are none of its own; a mixer goes on from ``state``, and ``behind`` is the one behind the tile.
    """

    positions: int
    start: int
    graded: bool
    own: tuple[Sized, ...] = ()
    read: int = 0
    state: Sized | None = None
    behind: Sized | None = None


class Ops(Protocol):
    """What attention needs of a pass."""

    @property
    def ledger(self) -> Ledger:
        """Where bytes are counted."""

    @property
    def tape(self) -> Tape:
        """The way back."""

    @property
    def batch(self) -> BatchShape:
        """What is computed on."""

    def new(self, nbytes: int) -> Storage:
        """Return bytes that are live until nothing refers to them."""


def attend_in_tile(
    ops: Ops, inputs: tuple[Sized, Sized, Sized], rule: Attention, tile: SizedTile,
    front: tuple[Sized, Sized] | None,
) -> Sized:  # fmt: skip
    """Return the output (B, H, N, h): saves its inputs, itself and a float32 a query."""
    q, k, v = inputs
    piece = _Piece.of(ops.batch, q, k, rule, tile, 0 if front is None else front[0].shape[2])
    storage = ops.new(q.nbytes)
    sums = ops.new(FLOAT32_BYTES * q.numbers // q.shape[-1])
    ops.ledger.transient(piece.forward())
    sizes = [x.nbytes for x in (*inputs, *(front or ()))]
    gathered = [FLOAT32_BYTES * x.numbers for x in (k, v, *(front or ()))]
    wide = q.width == FLOAT32_BYTES

    def back(_: list[Gradient]) -> Sequence[Gradient]:
        first = ops.new(sizes[0])
        others = [ops.new(size) for size in gathered]
        ops.ledger.transient(piece.backward())
        if wide:
            return [first, *others]
        return [first, *(ops.new(size) for size in sizes[1:])]

    return ops.tape.made(
        q.shape, q.width, (*inputs, *(front or ())), back,
        storage=storage, saved=(*inputs, *(front or ()), storage, sums),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Piece:
    """One row's queries of a piece and their keys, as numbers of numbers."""

    count: int
    """Queries of a head, n."""
    queries: int
    """Numbers of all heads' queries, H n h."""
    rows: int
    """Queries of all heads, H n."""
    own: int
    """Numbers of their own keys, G n h."""
    keys: int
    """Numbers of the keys of a later piece, G K h."""
    later: int
    """K of a later piece."""
    attended: int
    """Bytes of a number where attention multiplies it."""
    widens: bool
    shares: bool
    """Whether heads share keys, so that their queries are put together by a copy."""
    kernel: bool
    whole: bool
    """Whether these are all queries of a row's tile."""
    several: bool
    """Whether there are more rows."""
    rule: Attention

    @classmethod
    def of(
        cls, batch: BatchShape, q: Sized, k: Sized, rule: Attention, tile: SizedTile, front: int
    ) -> _Piece:
        """Return the largest piece of a tile."""
        batched, heads, positions, size = q.shape
        kernel = _fused(batch, rule, tile.positions + front, size)
        count = positions if kernel else min(positions, SCORED_QUERIES)
        past = max(tile.start, positions - count, front)
        if rule.window is not None:
            past = min(past, max(rule.window - 1, front))
        later = min(past, KEYS if kernel else SCORED_KEYS)
        return cls(
            count=count, queries=heads * count * size, rows=heads * count,
            own=k.shape[1] * count * size, shares=heads != k.shape[1],
            keys=k.shape[1] * later * size, later=later, attended=batch.attended,
            widens=batch.attended != q.width, kernel=kernel, rule=rule,
            whole=count == positions and batch.documents == 1, several=batched > 1,
        )  # fmt: skip

    def forward(self) -> int:
        """Return the most bytes on the way forward."""
        wide, found = self.queries * self.attended * self.widens, self._found
        wide += self._each if self.several or not self.whole else 0  # sums of the piece before
        if self.kernel:
            first = self._wide_keys(self.own) + self._narrow + found + self._each
            then = self._wide_keys(self.keys) + self._narrow + 2 * found
            then += STATISTICS * self._each
            return wide + max(first, then if self.keys else 0)
        first, then = self._scored(self.own, self.count), self._scored(self.keys, self.later)
        return wide + max(first, then + found if self.keys else 0)

    def backward(self) -> int:
        """Return the most bytes on the way back, above the gradients that are gathered."""
        wide, total = 3 * self.queries * self.attended * self.widens, self._found
        wide += 0 if self.whole else self._each  # their sums, put together
        if self.kernel:
            own, later = (self._wide_keys(x) + 2 * x * self.attended for x in (self.own, self.keys))
            both = max(own, later + total if self.keys else 0)
            return wide + both + total + self._narrow
        first = self._scored_back(self.own, self.count)
        then = self._scored_back(self.keys, self.later)
        return wide + max(first, then + total if self.keys else 0)

    def _scored(self, keys: int, length: int) -> int:
        """Return what a piece takes whose scores are made: those, masks, and then its output.

        Queries put together are there while they are multiplied, and no longer.
        """
        scores, narrow = self._scores(length)
        statistics = STATISTICS * self._each
        moments = (
            self._grouped + (narrow or scores),
            scores + max(narrow, self._masks(length)),
            scores + self._narrow + max(narrow, self._found),
        )
        return self._wide_keys(keys) + statistics + max(moments)

    def _scored_back(self, keys: int, length: int) -> int:
        """Return the same on the way back, where the slope of a cap is there from the first on.

        A gradient of scores comes beside them; then it makes those of keys and of queries. Those of
        outputs stay put together, queries only while they are multiplied.
        """
        scores, narrow = self._scores(length)
        slope = scores if self.rule.softcap is not None else 0
        each = keys * self.attended
        products = 2 * self._found if self._narrow or self.shares else self._found + self._each
        then = (narrow or scores) + 2 * each + max(self._grouped, self._narrow + self._found)
        moments = (
            scores + max(self._grouped, self._masks(length)),
            self._grouped + 2 * scores + each + max(narrow, products),
            self._grouped + then,
        )
        return self._wide_keys(keys) + slope + max(moments)

    @property
    def _each(self) -> int:
        """The bytes of a float32 a query."""
        return FLOAT32_BYTES * self.rows

    @property
    def _found(self) -> int:
        """The bytes of the output, or of a gradient of the queries, in float32."""
        return FLOAT32_BYTES * self.queries

    @property
    def _narrow(self) -> int:
        """The bytes of the same as a product makes it, where that is another array."""
        return 0 if self.attended == FLOAT32_BYTES else self.queries * self.attended

    @property
    def _grouped(self) -> int:
        """The bytes of the queries of heads that share keys, put together."""
        return self.queries * self.attended * self.shares

    def _wide_keys(self, numbers: int) -> int:
        """Return the bytes of keys and values in the type that attention multiplies."""
        return 2 * numbers * self.attended * self.widens

    def _scores(self, length: int) -> tuple[int, int]:
        """Return the bytes of scores in float32, and as a product makes them or takes them."""
        numbers = self.rows * length
        narrow = 0 if self.attended == FLOAT32_BYTES else self.attended
        return FLOAT32_BYTES * numbers, narrow * numbers

    def _masks(self, length: int) -> int:
        """Return the bytes of who sees what, and of what distance takes from scores."""
        hidden = 2 * self.count * length
        slopes = FLOAT32_BYTES * self.rows + INDEX * self.count
        return max(hidden, slopes * length if self.rule.slopes else 0)


def _fused(batch: BatchShape, rule: Attention, keys: int, size: int) -> bool:
    """Tell whether a kernel attends as the rule says; those of a card take 16 bits alone."""
    if rule.softcap is not None or rule.slopes or rule.sinks is not None:
        return False
    if rule.window is not None and rule.window < keys:
        return False
    if batch.keeps_scratch:
        return True
    return batch.fuses and batch.attended != FLOAT32_BYTES and size % 8 == 0 and size <= WIDEST_HEAD


WIDEST_HEAD = 256
"""Channels of a head that the kernel of a card takes; a multiple of 8."""
