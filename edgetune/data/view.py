"""Rows as people see them: their text in pieces, each learned or only read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from edgetune.data.dataset import Dataset
from edgetune.data.examples import Examples
from edgetune.data.tokenizer import Tokenizer
from edgetune.errors import UsageError

_DIGITS = 18
"""Digits of the number of a line, at most."""

_SHOWN = 80
"""Characters of a place that an error repeats."""


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row's place, its side and its (text, is learned) pieces.

    The side is ``trained``, ``validation`` or ``dropped``; then there are no pieces, and
    ``because`` says why. ``tokens`` counts all, ``learned`` those that are learned. ``answer`` says
    of an unpaired answer whether it is ``desirable`` or ``undesirable``.
    """

    place: str
    side: str
    pieces: list[tuple[str, bool]]
    because: str | None = None
    tokens: int = 0
    learned: int = 0
    answer: str | None = None


def show_rows(
    dataset: Dataset, tokenizer: Tokenizer, *, first: int = 0, locations: Sequence[str] = ()
) -> list[ShownRow]:
    """Return the ``first`` rows, and those at places such as ``12`` or ``chats.jsonl:12``.

    A row that was split is shown as all its pieces, one that was dropped as the reason alone.

    Raises:
        UsageError: if there is no such row.
    """
    count = dataset.receipt.rows_read
    rows = [
        *range(min(first, count)),
        *(row for place in locations for row in _rows_at(dataset, place)),
    ]
    return list(rows_shown(dataset, tokenizer, rows))


def rows_shown(dataset: Dataset, tokenizer: Tokenizer, rows: Iterable[int]) -> Iterator[ShownRow]:
    """Yield what became of rows, by their numbers from 0 in the order in which they were read."""
    return (shown for row in rows for shown in _shown(dataset, tokenizer, row))


def _shown(dataset: Dataset, tokenizer: Tokenizer, row: int) -> Iterator[ShownRow]:
    for side, examples in (("trained", dataset.train), ("validation", dataset.validation)):
        for index in np.flatnonzero(examples.rows == row).tolist():
            tokens, mask = examples[index]
            pieces = view_row((tokens.tolist(), mask.tolist()), tokenizer)
            yield ShownRow(
                examples.place(index), side, pieces, tokens=len(tokens), learned=int(mask.sum()),
                answer=_answer(examples, index),
            )  # fmt: skip
    if 0 <= row < dataset.receipt.rows_read:
        place = dataset.train.locations[row]
        for dropped in dataset.receipt.dropped:
            if dropped.place == place:
                yield ShownRow(place, "dropped", [], dropped.because)


def _answer(examples: Examples, index: int) -> str | None:
    if examples.kind != "unpaired" or (examples.has_better & examples.has_worse)[index]:
        return None
    return "desirable" if examples.firsts[index] else "undesirable"


def _rows_at(dataset: Dataset, place: str) -> list[int]:
    """Return the rows at a place: the line alone names it in every file."""
    locations = dataset.train.locations
    number = place.replace(":", " ").split(" ")[-1]
    if not number.isdecimal():
        raise UsageError(f"--show takes lines such as 12 or chats.jsonl:12; found {place}.")
    line = int(number) if len(number) <= _DIGITS else -1
    rows = np.flatnonzero(locations.lines == line).tolist()
    found = [row for row in rows if place in (number, locations[row])]
    if not found:
        raise UsageError(f"There is no row at {place[:_SHOWN]}.")
    return found


def view_row(
    example: tuple[Sequence[int], Sequence[bool]], tokenizer: Tokenizer
) -> list[tuple[str, bool]]:
    """Return (text, is it learned) for each run of an example; the texts join to the whole."""
    tokens, mask = example
    spans, shown = [], ""
    for stop, learned in _runs(mask):
        text = tokenizer.decode(tokens[:stop])
        # The first bytes of a character that ends in the next run are shown there.
        text = text if stop == len(tokens) else text.rstrip("\ufffd")
        spans.append((text[len(shown) :], learned))
        shown = text
    return spans


def _runs(mask: Sequence[bool]) -> Iterator[tuple[int, bool]]:
    """Yield where each run of equal values stops, and the value."""
    stop = 0
    for learned, run in groupby(mask):
        stop += sum(1 for _ in run)
        yield stop, bool(learned)
