"""Rows of documents: where each lies, and rows with something in front of each.

B rows, S positions, P positions in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

Documents = tuple[tuple[int, ...], ...]
"""The lengths of the documents of each row."""

Shared = tuple[tuple[int, ...], ...]
"""How many tokens each document goes on from: the first ones of the last before it that goes on
from none. Empty: no document of any row does."""


@dataclass(frozen=True, slots=True)
class Span:
    """The positions of a document in its row, and those that it goes on from."""

    own: slice
    trunk: slice | None = None


def spans(lengths: tuple[int, ...], shared: tuple[int, ...] = ()) -> Iterator[Span]:
    """Yield where the documents of a row lie, ``shared`` as in :data:`Shared`."""
    start = root = 0
    for length, count in zip(lengths, shared or repeat(0, len(lengths)), strict=True):
        yield Span(slice(start, start + length), slice(root, root + count) if count else None)
        root = root if count else start
        start += length


def within(documents: Documents, span: slice) -> Documents:
    """Return the lengths of documents as far as they lie between positions of their rows."""
    return tuple(
        tuple(
            length
            for own in (each.own for each in spans(row))
            if (length := min(own.stop, span.stop) - max(own.start, span.start)) > 0
        )
        for row in documents
    )


def rows_of(documents: Documents, shared: Shared) -> Iterator[tuple[int, list[Span]]]:
    """Yield the number of each row, and where its documents lie."""
    for number, lengths in enumerate(documents):
        yield number, list(spans(lengths, shared[number] if shared else ()))


def preceded(x: Tensor, before: Tensor, documents: Documents, shared: Shared) -> Tensor:
    """Return x (B, heads, S, h) with ``before`` (1, heads, P, h) in front of each document.

    What goes on from another document has it there. Padding behind the documents stays; all rows
    come out as long as the one with most in front.
    """
    if all(len(row) <= 1 for row in documents):
        return torch.cat((before.expand(len(x), -1, -1, -1), x), 2)
    rows = list(rows_of(documents, shared))
    most = max(_roots(row) for _, row in rows)
    return torch.cat([_row(x[i : i + 1], before, row, most) for i, row in rows])


def _row(x: Tensor, before: Tensor, row: list[Span], most: int) -> Tensor:
    parts, stop = [], 0
    for span in row:
        parts += [x[:, :, span.own]] if span.trunk else [before, x[:, :, span.own]]
        stop = span.own.stop
    missing = (most - _roots(row)) * before.shape[2]
    padding = x.new_zeros(1, x.shape[1], missing, x.shape[3])
    return torch.cat((*parts, x[:, :, stop:], padding), 2)


def _roots(row: list[Span]) -> int:
    """Return how many documents go on from none."""
    return sum(span.trunk is None for span in row)


def followed(
    out: Tensor, length: int, documents: Documents, shared: Shared, positions: int
) -> Tensor:
    """Return what is left (B, heads, S, h) of :func:`preceded` without what was put in front."""
    if all(len(row) <= 1 for row in documents):
        return out[:, :, length:]
    rows = []
    for i, row in rows_of(documents, shared):
        parts, moved, stop = [], 0, 0
        for span in row:
            moved += 0 if span.trunk else length
            stop = span.own.stop
            parts.append(out[i : i + 1, :, span.own.start + moved : stop + moved])
        parts.append(out[i : i + 1, :, stop + moved : positions + moved])
        rows.append(torch.cat(parts, 2))
    return torch.cat(rows)


def longer(documents: Documents, shared: Shared, length: int) -> tuple[Documents, Shared]:
    """Return the documents of :func:`preceded`, and what they share, for ``length`` in front."""
    begins = shared or tuple((0,) * len(row) for row in documents)
    grown = tuple(
        tuple(size if count else size + length for size, count in zip(row, counts, strict=True))
        for row, counts in zip(documents, begins, strict=True)
    )
    return grown, tuple(tuple(count and count + length for count in row) for row in shared)


def grouped(documents: Documents, size: int, *, late: bool) -> Documents:
    """Return documents cut into groups of ``size``; if ``late`` the first is half as much longer."""
    first = size + size // 2 if late else size
    return tuple(tuple(_cut(row, first, size)) for row in documents)


def _cut(lengths: tuple[int, ...], first: int, size: int) -> Iterator[int]:
    for length in lengths:
        yield min(first, length)
        for start in range(first, length, size):
            yield min(size, length - start)
