"""What a backend is given: rectangles of tokens, with targets already shifted.

There is never a mask tensor. Rows are padded on the right, attention is causal, and
``documents`` says where attention restarts: nothing leaks between packed documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgetune.objectives import AnswerKind

IGNORED = -100
"""The target of a position that takes no part in the loss."""


def answer_starts(targets: NDArray[np.int32]) -> NDArray[np.intp]:
    """Return where the first token of each row's (B, S) last answer is predicted from (B,).

    >>> answer_starts(np.array([[IGNORED, IGNORED, 7, 8], [5, IGNORED, 6, IGNORED]], np.int32))
    array([2, 2])
    """
    learned = targets != IGNORED
    begun = learned.copy()
    begun[:, 1:] &= ~learned[:, :-1]
    found: NDArray[np.intp] = learned.shape[1] - 1 - np.argmax(begun[:, ::-1], axis=1)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """B rows of S positions.

    ``tokens`` (B, S) int32 are the inputs, ``targets`` (B, S) int32 the tokens that follow
    them, ``IGNORED`` where there is no loss. ``documents`` holds for each row the lengths of
    its documents from left to right; what is left of a row is padding. Positions restart at
    zero with each document. ``answers`` says of each document what it is to an objective over
    whole answers; empty for plain language modelling. ``first`` is the number of its first row
    within the step, from which dropout is drawn, and ``halves`` says where its gradients are added:
    in which half of this rank's part of the step, in which half of that half, … ``shared`` says of
    each document how many tokens it goes on from: the first ones of the document before it, which
    it reads as its own and which are not under loss; empty where no document does.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    documents: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[AnswerKind, ...], ...] = ()
    first: int = 0
    halves: tuple[int, ...] = ()
    shared: tuple[tuple[int, ...], ...] = ()

    @property
    def kinds(self) -> tuple[AnswerKind, ...]:
        """What the documents are, one row after another."""
        return tuple(kind for row in self.answers for kind in row)

    @property
    def is_mismatched(self) -> bool:
        """Whether the documents are answers to other prompts, which are never learned."""
        return any("mismatched" in row for row in self.answers)

    @property
    def loss_tokens(self) -> int:
        """Number of positions under loss."""
        return int(np.count_nonzero(self.targets != IGNORED))

    @property
    def real_tokens(self) -> int:
        """Number of positions that are not padding."""
        return sum(sum(row) for row in self.documents)

    @property
    def begins(self) -> tuple[tuple[int, ...], ...]:
        """The position of each document's first token: behind those that it shares."""
        return self.shared or tuple((0,) * len(row) for row in self.documents)

    def positions(self) -> NDArray[np.int32]:
        """Return the position of every token in its document, (B, S) int32; 0 for padding."""
        positions = np.zeros_like(self.tokens)
        for row, lengths, begins in zip(positions, self.documents, self.begins, strict=True):
            start = 0
            for length, first in zip(lengths, begins, strict=True):
                row[start : start + length] = np.arange(first, first + length, dtype=np.int32)
                start += length
        return positions

    def lengths(self) -> NDArray[np.int32]:
        """Return the length of every token's document, (B, S) int32; 0 for padding."""
        lengths = np.zeros_like(self.tokens)
        for row, sizes in zip(lengths, self.documents, strict=True):
            row[: sum(sizes)] = np.repeat(sizes, sizes)
        return lengths

    def loss_documents(self) -> NDArray[np.int64]:
        """Return the number of each loss token's document, (N,), both counted row by row."""
        numbers, count = np.zeros(self.tokens.shape, np.int64), 0
        for row, sizes in zip(numbers, self.documents, strict=True):
            row[: sum(sizes)] = np.repeat(np.arange(count, count + len(sizes)), sizes)
            count += len(sizes)
        found: NDArray[np.int64] = numbers[self.targets != IGNORED]
        return found

    def widened(self, width: int) -> MicroBatch:
        """Return the same rows with padding up to ``width`` positions."""
        if width == self.tokens.shape[1]:
            return self
        behind = ((0, 0), (0, width - self.tokens.shape[1]))
        return replace(
            self,
            tokens=np.pad(self.tokens, behind),
            targets=np.pad(self.targets, behind, constant_values=IGNORED),
        )

    def rows(self, start: int, stop: int) -> MicroBatch:
        """Return some rows as a micro-batch; the losses of all parts add up to the whole's."""
        return replace(
            self,
            tokens=self.tokens[start:stop],
            targets=self.targets[start:stop],
            documents=self.documents[start:stop],
            answers=self.answers[start:stop],
            first=self.first + start,
            shared=self.shared[start:stop],
        )


def split(batches: Sequence[MicroBatch], rows: int) -> tuple[MicroBatch, ...]:
    """Return the same rows in micro-batches of at most ``rows``; 0 leaves them as they are."""
    if rows == 0:
        return tuple(batches)
    return tuple(
        batch.rows(start, start + rows)
        for batch in batches
        for start in range(0, len(batch.tokens), rows)
    )


def prompt_batch(prompts: Sequence[Sequence[int]]) -> MicroBatch:
    """Return prompts as rows of one document each, none of them under loss."""
    tokens = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    documents = tuple((len(prompt),) for prompt in prompts)
    return MicroBatch(tokens=tokens, targets=np.full_like(tokens, IGNORED), documents=documents)


def full_batch(
    rows: int,
    context: int,
    vocabulary: int,
    documents: tuple[int, ...] | None = None,
    shared: tuple[int, ...] = (),
) -> MicroBatch:
    """Return rows that are full and all under loss: the most that a step can be given.

    ``documents`` are the lengths of the documents in each row, one by default, and ``shared`` what
    each goes on from.
    """
    tokens = np.arange(rows * context, dtype=np.int32).reshape(rows, context) % vocabulary
    return MicroBatch(
        tokens=tokens,
        targets=tokens,
        documents=(documents or (context,),) * rows,
        shared=(shared,) * rows if any(shared) else (),
    )
