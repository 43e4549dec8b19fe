"""Documents as the rows of micro-batches: padding is token 0 and never a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.objectives import AnswerKind


class Piece(NamedTuple):
    """What is put into a row as a whole: tokens (T,), which of them are learned (T,).

    ``lengths`` are those of its documents, ``kinds`` what each is to an objective over answers.
    The second document goes on from the first ``shared`` tokens of the first one.
    """

    tokens: NDArray[np.int32]
    mask: NDArray[np.bool_]
    lengths: tuple[int, ...]
    kinds: tuple[AnswerKind, ...] = ()
    shared: int = 0

    @property
    def begins(self) -> tuple[int, ...]:
        """How many tokens each of the documents goes on from."""
        return tuple(self.shared if number else 0 for number in range(len(self.lengths)))


def micro_batch_from(rows: Sequence[Sequence[Piece]], width: int) -> MicroBatch:
    """Return rows of ``width`` positions, each with its pieces from left to right."""
    shape = len(rows), width
    tokens, targets = np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)
    for number, row in enumerate(rows):
        start = 0
        for piece in row:
            stop = start + len(piece.tokens)
            tokens[number, start:stop] = piece.tokens
            learned = np.where(piece.mask[1:], piece.tokens[1:], IGNORED)
            targets[number, start : stop - 1] = learned
            start = stop
    answers = tuple(tuple(kind for piece in row for kind in piece.kinds) for row in rows)
    shared = tuple(tuple(n for piece in row for n in piece.begins) for row in rows)
    return MicroBatch(
        tokens=tokens,
        targets=targets,
        documents=tuple(tuple(n for piece in row for n in piece.lengths) for row in rows),
        answers=answers if any(answers) else (),
        shared=shared if any(map(any, shared)) else (),
    )
