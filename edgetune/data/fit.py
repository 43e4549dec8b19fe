"""What happens to rows that are longer than the context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgetune.data.examples import Examples, Integers
from edgetune.data.problems import Problems

LongRows = Literal["refuse", "split", "cut", "drop"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Examples within the context, and what that cost.

    ``dropped`` are the indices of rows that are gone, ``rows`` how many are left (a split row
    is one row and several examples), ``long`` how many were over the context.
    """

    examples: Examples
    dropped: Integers
    rows: int
    long: int
    tokens_cut: int


def fit(examples: Examples, context: int, rule: LongRows) -> Fitted:
    """Apply a length rule, so that no example has more than ``context`` tokens.

    To refuse is to leave everything as it is: ``refuse_long`` has spoken before.
    """
    long = examples.lengths > context
    if not long.any():
        return Fitted(examples, np.zeros(0, np.int64), len(examples), 0, 0)
    match rule:
        case "refuse":
            kept, starts, stops = _uncut(examples)
        case "drop":
            kept, starts, stops = (part[~long] for part in _uncut(examples))
        case "cut":
            kept, starts, stops = _uncut(examples)
            stops = np.minimum(stops, starts + context)
        case "split":
            kept, starts, stops = _pieces(examples, context)
    cut = examples.slices(starts, stops, kept)
    return _fitted(examples, cut, kept, int(long.sum()))


def refuse_long(parts: Sequence[Examples], context: int) -> None:
    """Refuse rows that are longer than the context, all of them at once.

    Raises:
        DataError: naming the rows and what to do.
    """
    problems = Problems()
    for _, _, place, length in sorted(row for part in parts for row in _long_rows(part, context)):
        problems.add(place, f"{length} tokens, more than the context of {context}.")
    longest = max(int(part.lengths.max(initial=0)) for part in parts)
    problems.raise_if_any(
        "Rows longer than the context",
        f"Use --context {longest}, or say with --long-rows cut or --long-rows drop what to do.",
    )


def _long_rows(examples: Examples, context: int) -> Iterator[tuple[int, int, str, int]]:
    """Yield (file, line, place, tokens) of the rows over the context."""
    lengths, places = examples.lengths, examples.places
    for index in np.flatnonzero(lengths > context).tolist():
        yield places.files[index], places.lines[index], places[index], lengths[index]


def _uncut(examples: Examples) -> tuple[Integers, Integers, Integers]:
    return np.arange(len(examples)), examples.offsets[:-1], examples.offsets[1:]


def _pieces(examples: Examples, context: int) -> tuple[Integers, Integers, Integers]:
    """Cut each row in pieces that share one token, so that every token is predicted once."""
    counts = np.maximum(-(-(examples.lengths - 1) // (context - 1)), 1)
    rows = np.repeat(np.arange(len(examples)), counts)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = examples.offsets[:-1][rows] + number * (context - 1)
    return rows, starts, np.minimum(starts + context, examples.offsets[1:][rows])


def _fitted(whole: Examples, cut: Examples, origins: Integers, long: int) -> Fitted:
    useful = cut.loss_tokens > 0
    if not useful.all():
        cut, origins = cut.take(np.flatnonzero(useful)), origins[useful]
    dropped = np.setdiff1d(np.arange(len(whole)), origins)
    lost = int(whole.lengths[dropped].sum())
    shared = len(origins) - len(np.unique(origins))
    tokens_cut = len(whole.tokens) - lost - (len(cut.tokens) - shared)
    return Fitted(cut, dropped, len(whole) - len(dropped), long, tokens_cut)
