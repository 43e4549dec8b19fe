"""The tokens whose embeddings are nearest to the rows of a prompt (Lester et al. 2021, section 7)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A token and the cosine of its embedding."""

    token: int
    cosine: float


def nearest_tokens(
    prompt: Float32, embedding: Iterable[NDArray[np.generic]], count: int
) -> list[list[Neighbour]]:
    """Return the ``count`` nearest tokens of each row of a prompt (P, D), the nearest first.

    ``embedding`` yields the rows of the table (V, D) in pieces, from the first token on.
    """
    wanted = _unit(prompt.astype(np.float32))
    best = np.full((len(prompt), 0), 0, np.float32)
    tokens = np.zeros((len(prompt), 0), np.int64)
    for start, rows in _placed(embedding):
        cosines = wanted @ _unit(rows.astype(np.float32)).T
        ids = np.broadcast_to(np.arange(start, start + len(rows)), cosines.shape)
        best, tokens = np.hstack([best, cosines]), np.hstack([tokens, ids])
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best, tokens = np.take_along_axis(best, order, 1), np.take_along_axis(tokens, order, 1)
    return [
        [Neighbour(int(token), float(cosine)) for token, cosine in zip(*row, strict=True)]
        for row in zip(tokens, best, strict=True)
    ]


def _placed(
    pieces: Iterable[NDArray[np.generic]],
) -> Iterator[tuple[int, NDArray[np.generic]]]:
    start = 0
    for piece in pieces:
        yield start, piece
        start += len(piece)


def _unit(rows: Float32) -> Float32:
    """Return rows of length 1; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Float32 = (rows / np.where(norms == 0, 1, norms)).astype(np.float32)
    return unit
