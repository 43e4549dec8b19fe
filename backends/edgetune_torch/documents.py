"""Rows of documents with something in front of each.

B rows, S positions, P positions in front.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Documents = tuple[tuple[int, ...], ...]
"""The lengths of the documents of each row."""


def preceded(x: Tensor, before: Tensor, documents: Documents) -> Tensor:
    """Return x (B, heads, S, h) with ``before`` (1, heads, P, h) in front of each document.

    Padding behind the documents stays; all rows come out as long as the one with most documents.
    """
    if all(len(row) <= 1 for row in documents):
        return torch.cat((before.expand(len(x), -1, -1, -1), x), 2)
    most = max(map(len, documents))
    return torch.cat([_row(x[i : i + 1], before, row, most) for i, row in enumerate(documents)])


def _row(x: Tensor, before: Tensor, lengths: tuple[int, ...], most: int) -> Tensor:
    parts, start = [], 0
    for length in lengths:
        parts += [before, x[:, :, start : start + length]]
        start += length
    missing = (most - len(lengths)) * before.shape[2]
    padding = x.new_zeros(1, x.shape[1], missing, x.shape[3])
    return torch.cat((*parts, x[:, :, start:], padding), 2)


def followed(out: Tensor, length: int, documents: Documents, positions: int) -> Tensor:
    """Return what is left (B, heads, S, h) without the first ``length`` of each document."""
    if all(len(row) <= 1 for row in documents):
        return out[:, :, length:]
    rows = []
    for i, lengths in enumerate(documents):
        parts, start = [], 0
        for size in lengths:
            parts.append(out[i : i + 1, :, start + length : start + length + size])
            start += length + size
        padding = positions - sum(lengths)
        rows.append(torch.cat((*parts, out[i : i + 1, :, start : start + padding]), 2))
    return torch.cat(rows)


def grouped(documents: Documents, size: int, *, late: bool) -> Documents:
    """Return documents cut into groups of ``size``; if ``late`` the first is half as much longer."""
    first = size + size // 2 if late else size
    return tuple(tuple(_cut(row, first, size)) for row in documents)


def _cut(lengths: tuple[int, ...], first: int, size: int) -> Iterator[int]:
    for length in lengths:
        yield min(first, length)
        for start in range(first, length, size):
            yield min(size, length - start)
