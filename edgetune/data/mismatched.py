"""Answers put after other rows' prompts, by which an objective tells how far a policy has moved.

KTO takes the mean log-ratio of such answers for the divergence from the reference. Which prompt
an answer comes after depends on the rows and their order alone, not on micro-batches or packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from edgetune.data.batch import MicroBatch
from edgetune.data.examples import Examples
from edgetune.data.pack import pack
from edgetune.data.rectangles import Piece, micro_batch_from
from edgetune.data.token_store import Integers

Document = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Tokens (T,), and which of them are learned (T,)."""


def mismatched_pieces(examples: Examples, order: Integers, *, by: int, longest: int) -> list[Piece]:
    """Return the answers in ``order`` after other prompts, as :func:`moved_on` has it.

    The second answers of pairs come behind all others, as a neighbour would be an answer to the same
    prompt. A row alone has no other prompt: there is nothing then.
    """
    if len(order) < 2:
        return []
    documents, rows = _answers(examples, order)
    return moved_on(documents, rows, by=by, longest=longest)


def moved_on(
    documents: Sequence[Document], rows: Sequence[int], *, by: int, longest: int
) -> list[Piece]:
    """Return the prompt of each document with the answer of the one ``by`` places before it.

    The first are given the last ones. ``rows`` tells which row each document is of, of two at
    least: where that answer is of the same row, the next one before it that is not is taken. An
    answer is cut at ``longest`` tokens with its prompt.
    """
    starts = [int(np.argmax(mask)) for _, mask in documents]
    found = []
    for number, start in enumerate(starts):
        other = (number - by) % len(rows)
        while rows[other] == rows[number]:
            other -= 1
        prompt, (tokens, mask) = documents[number][0][:start], documents[other]
        answer = slice(starts[other], None)
        whole = np.concatenate([prompt, tokens[answer]])[:longest]
        learned = np.concatenate([np.zeros(start, np.bool_), mask[answer]])[:longest]
        found.append(Piece(whole, learned, (len(whole),), ("mismatched",)))
    return found


def _answers(examples: Examples, order: Integers) -> tuple[list[Document], list[int]]:
    """Return every answer with its prompt, and its row; second ones of rows behind all others."""
    first: list[Document] = []
    second: list[Document] = []
    paired: list[int] = []
    for row, index in enumerate(order.tolist()):
        (tokens, mask), (sizes, _) = examples[index], examples.documents(index)
        first.append((tokens[: sizes[0]], mask[: sizes[0]]))
        if len(sizes) > 1:
            second.append((tokens[sizes[0] :], mask[sizes[0] :]))
            paired.append(row)
    return first + second, [*range(len(first)), *paired]


def mismatched_batches(
    pieces: Sequence[Piece], *, widths: Integers, micro_batch: int, packing: bool
) -> tuple[MicroBatch, ...]:
    """Return pieces as micro-batches of the shapes that those of a run have, shorter ones first."""
    if not pieces:
        return ()
    lengths = np.array([len(piece.tokens) for piece in pieces], np.int32)
    row_of = pack(lengths, int(widths[-1])) if packing else np.arange(len(pieces))
    order = np.lexsort((lengths, row_of) if packing else (row_of, lengths)).tolist()
    rows = [[pieces[n] for n in row] for _, row in groupby(order, lambda n: row_of[n])]
    found = []
    for start in range(0, len(rows), micro_batch):
        part = rows[start : start + micro_batch]
        most = max(sum(len(piece.tokens) for piece in row) for row in part)
        found.append(micro_batch_from(part, int(widths[np.searchsorted(widths, most)])))
    return tuple(found)
