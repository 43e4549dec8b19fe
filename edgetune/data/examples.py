"""Tokenized examples as ranges of a few flat arrays, which can lie on disk.

Legend: N examples, R rows, T tokens of all rows together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgetune.data.token_store import Counts, Integers, TokenStore
from edgetune.objectives import AnswerKind, Rows


@dataclass(frozen=True, slots=True)
class RowLocations:
    """Where each row comes from; ``places[row]`` is what a message calls it.

    ``prefixes`` has one text a file (``"chats.jsonl:"``), ``bounds`` (files + 1,) the row with
    which each file begins, ``lines`` (R,) where in its file a row stands.
    """

    prefixes: tuple[str, ...]
    bounds: Integers
    lines: Integers

    def __getitem__(self, row: int) -> str:
        """Return the place of one row, such as ``chats.jsonl:12``."""
        return f"{self.prefixes[self.file_of(row)]}{self.lines[row]}"

    def file_of(self, row: int) -> int:
        """Return the number of the file that a row is from."""
        return int(np.searchsorted(self.bounds, row, side="right")) - 1


@dataclass(frozen=True, slots=True)
class Examples:
    """N examples of the tokens ``tokens`` (T,) int32, under loss where ``mask`` (T,) is true.

    ``starts`` (N,) is where each begins, ``lengths`` (N,) how many tokens it has and
    ``loss_tokens`` (N,) how many of them are learned, ``rows`` (N,) the row that it is from.
    ``kind`` says what an example is to an objective over answers, None for plain answers. The
    first ``firsts`` (N,) tokens of an example are the document with the better answer, what follows
    them that with the worse one: of unpaired answers there may be one of the two. The first
    ``shared`` (N,) tokens of both documents are the same and computed once: ``lengths`` count them
    once, and the rows of ``tokens`` hold them twice.
    The first token of an example is never learned: nothing comes before it to predict it from.
    """

    tokens: NDArray[np.int32]
    mask: NDArray[np.bool_]
    starts: Integers
    lengths: Counts
    loss_tokens: Counts
    rows: Counts
    firsts: Counts
    shared: Counts
    locations: RowLocations
    kind: Rows | None = None

    @classmethod
    def of(cls, columns: TokenStore, locations: RowLocations, kind: Rows | None = None) -> Examples:
        """Return all rows as examples."""
        stops = np.cumsum(columns.lengths, dtype=np.int64)
        return cls(
            columns.tokens,
            columns.mask,
            stops - columns.lengths,
            columns.lengths,
            columns.loss_tokens,
            np.arange(len(columns), dtype=np.int32),
            columns.firsts,
            np.zeros(len(columns), np.int32),
            locations,
            kind,
        )

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return the tokens and the loss mask of one example, its documents whole."""
        if not 0 <= index < len(self):
            raise IndexError(f"No example {index}; there are {len(self)}.")
        length = self.lengths[index] + self.shared[index]
        part = slice(self.starts[index], self.starts[index] + length)
        mask = np.array(self.mask[part])
        mask[:1] = False
        return np.asarray(self.tokens[part]), mask

    def __iter__(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        """Go through the examples in order."""
        return (self[index] for index in range(len(self)))

    @property
    def terms(self) -> Counts:
        """What each example adds to the count that a step's loss is divided by, (N,)."""
        if self.kind is None:
            return self.loss_tokens
        if self.kind == "pairs":
            return np.ones(len(self), np.int32)
        return self.has_better.astype(np.int32) + self.has_worse

    @property
    def has_better(self) -> NDArray[np.bool_]:
        """Which examples have a better answer, (N,), where they are preferences."""
        return self.firsts > 0

    @property
    def has_worse(self) -> NDArray[np.bool_]:
        """Which examples have a worse answer, (N,), where they are preferences."""
        return self.firsts < self.lengths

    def documents(self, index: int) -> tuple[tuple[int, ...], tuple[AnswerKind, ...]]:
        """Return the lengths of an example's documents, and what each is to an objective."""
        length, first = int(self.lengths[index] + self.shared[index]), int(self.firsts[index])
        if self.kind is None:
            return (length,), ()
        sizes: tuple[tuple[int, AnswerKind], ...] = (first, "chosen"), (length - first, "rejected")
        there = [one for one in sizes if one[0]]
        return tuple(size for size, _ in there), tuple(kind for _, kind in there)

    @property
    def token_count(self) -> int:
        """Tokens of all examples."""
        return int(self.lengths.sum(dtype=np.int64))

    def place(self, index: int) -> str:
        """Return what a message calls one example, such as ``chats.jsonl:12``."""
        return self.locations[int(self.rows[index])]

    def take(self, order: Integers) -> Examples:
        """Return the examples in ``order`` (indices); no token is copied."""
        return replace(
            self,
            starts=self.starts[order],
            lengths=self.lengths[order],
            loss_tokens=self.loss_tokens[order],
            rows=self.rows[order],
            firsts=self.firsts[order],
            shared=self.shared[order],
        )

    def sharing_prompts(self) -> Examples:
        """Return pairs whose documents share their beginning.

        Each document keeps the token before its first learned one for itself: it says what comes
        next, which is not the same in both.
        """
        shared = np.array([self._shared(index) for index in range(len(self))], np.int32)
        return replace(self, shared=shared, lengths=self.lengths - shared)

    def _shared(self, index: int) -> int:
        """Return how many tokens the documents of a pair can share."""
        (tokens, mask), first = self[index], int(self.firsts[index])
        before = max(0, min(int(mask[:first].argmax()), int(mask[first:].argmax())) - 1)
        different = tokens[:before] != tokens[first : first + before]
        return int(different.argmax()) if different.any() else before

    def slices(self, starts: Integers, lengths: Counts, origins: Integers) -> Examples:
        """Return parts of the examples; ``origins`` names the example each is from."""
        whole = self.take(origins)
        loss_tokens = whole.loss_tokens.copy()
        cut = (starts != whole.starts) | (lengths != whole.lengths)
        for index in np.flatnonzero(cut).tolist():
            learned = self.mask[starts[index] + 1 : starts[index] + lengths[index]]
            loss_tokens[index] = np.count_nonzero(learned)
        return replace(whole, starts=starts, lengths=lengths, loss_tokens=loss_tokens)


def ranges(starts: Integers, stops: Integers) -> tuple[Integers, Integers]:
    """Return the numbers of all ranges one after another, and where each range begins.

    >>> ranges(np.array([5, 0]), np.array([7, 3]))
    (array([5, 6, 0, 1, 2]), array([0, 2, 5]))
    """
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(stops - starts, dtype=np.int64)])
    flat = np.repeat(starts - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
    return flat, offsets
