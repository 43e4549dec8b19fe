"""The pieces in which a processor computes element by element: small enough for its caches.

A sum of two arrays takes a tenth of the time where they lie in a cache, and so does memory that was
used just now against memory that the system hands out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod

NUMBERS = 1 << 17
"""Numbers of a piece, more only where a single row of the last axis has more."""


def pieces(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Yield indices of the first axis, or of the first two, that cover an array of two axes or more.

    >>> list(pieces((300, 1024)))
    [(slice(0, 128, None),), (slice(128, 256, None),), (slice(256, 300, None),)]
    >>> len(list(pieces((2, 32, 4096, 64))))
    64
    """
    first, second = _lengths(shape)
    for start in range(0, shape[0], first):
        rows = slice(start, min(start + first, shape[0]))
        if second == shape[1]:
            yield (rows,)
            continue
        for at in range(0, shape[1], second):
            yield rows, slice(at, min(at + second, shape[1]))


def largest(shape: Sequence[int]) -> int:
    """Return the numbers of the largest piece.

    >>> largest((300, 1024)), largest((1, 2048, 2048)), largest((3, 5))
    (131072, 131072, 15)
    """
    first, second = _lengths(shape)
    return first * second * prod(shape[2:])


def count(shape: Sequence[int]) -> int:
    """Return how many pieces there are.

    >>> count((300, 1024)), count((2, 32, 4096, 64))
    (3, 64)
    """
    first, second = _lengths(shape)
    return ceil(shape[0] / first) * ceil(shape[1] / second)


def _lengths(shape: Sequence[int]) -> tuple[int, int]:
    """Return how much of the first two axes a piece has; the last axis is never cut."""
    within = prod(shape[1:])
    if within <= NUMBERS or len(shape) == 2:
        return min(shape[0], max(1, NUMBERS // max(1, within))) or 1, shape[1]
    return 1, min(shape[1], max(1, NUMBERS // prod(shape[2:])))
