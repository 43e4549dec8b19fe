"""What happens to rows that are longer than the context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgetune.data.examples import Examples
from edgetune.data.problems import Problems
from edgetune.data.token_store import Integers

LongRows = Literal["refuse", "split", "cut", "drop"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Examples within the context, and what that cost.

    ``dropped`` are the indices of rows that are gone, ``rows`` how many are left (a split row
    is one row and several examples), ``long`` how many were over the context. ``tokens_lost``
    are those of dropped rows and those cut off others.
    """

    examples: Examples
    dropped: Integers
    rows: int
    long: int
    tokens_lost: int


def fit(examples: Examples, context: int, rule: LongRows) -> Fitted:
    """Apply a length rule, so that no example has more than ``context`` tokens.

    To refuse is to leave everything as it is: ``refuse_long`` has spoken before.
    """
    long = examples.lengths > context
    if rule == "refuse" or not long.any():
        return Fitted(examples, np.zeros(0, np.int64), len(examples), int(long.sum()), 0)
    match rule:
        case "drop":
            origins = np.flatnonzero(~long)
            cut = examples.take(origins)
        case "cut":
            origins = np.arange(len(examples))
            cut = examples.slices(examples.starts, np.minimum(examples.lengths, context), origins)
        case "split":
            origins, number = _pieces(examples, context)
            before = number * (context - 1)
            lengths = np.minimum(examples.lengths[origins] - before, context).astype(np.int32)
            cut = examples.slices(examples.starts[origins] + before, lengths, origins)
    return _fitted(examples, cut, origins, int(long.sum()))


def refuse_long(parts: Sequence[Examples], context: int) -> None:
    """Refuse rows that are longer than the context, all of them at once.

    Raises:
        DataError: naming the rows and what to do.
    """
    problems = Problems()
    for _, place, length in sorted(row for part in parts for row in _long_rows(part, context)):
        problems.add(place, f"{length} tokens, more than the context of {context}.")
    longest = max(int(part.lengths.max(initial=0)) for part in parts)
    problems.raise_if_any(
        "Rows longer than the context",
        f"Use --context {longest}, or say with --long-rows cut or --long-rows drop what to do.",
    )


def _long_rows(examples: Examples, context: int) -> Iterator[tuple[int, str, int]]:
    """Yield (row, place, tokens) of the rows over the context."""
    for index in np.flatnonzero(examples.lengths > context).tolist():
        yield int(examples.rows[index]), examples.place(index), int(examples.lengths[index])


def _pieces(examples: Examples, context: int) -> tuple[Integers, Integers]:
    """Cut each row in pieces that share one token, so that every token is predicted once.

    Return of each piece the row and its number in it.
    """
    counts = np.maximum(-(-(examples.lengths - 1) // (context - 1)), 1)
    rows = np.repeat(np.arange(len(examples)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def _fitted(whole: Examples, cut: Examples, origins: Integers, long: int) -> Fitted:
    useful = cut.loss_tokens > 0
    if not useful.all():
        cut, origins = cut.take(np.flatnonzero(useful)), origins[useful]
    kept = np.unique(origins)
    dropped = np.setdiff1d(np.arange(len(whole)), kept, assume_unique=True)
    shared = len(origins) - len(kept)
    tokens_lost = whole.token_count - (cut.token_count - shared)
    return Fitted(cut, dropped, len(kept), long, tokens_lost)
