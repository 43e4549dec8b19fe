"""An example as people see it: its text in pieces, each learned or only read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from edgetune.data.tokenizer import Tokenizer


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
