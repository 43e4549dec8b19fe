"""THE few row counts that products are computed with; what lies between is filled up.

Memory, compilation and graphs are bounded by the number of different shapes. Members are close
enough: from 64 rows on less than an eighth of a product is filling.
"""

from __future__ import annotations

STEPS = 8
"""Members between a power of two and the next."""


def bucket(rows: int) -> int:
    """Return the smallest member of the set that holds ``rows``; 0 for none.

    1, 2, 4, 8, multiples of 8 up to 128, of 16 up to 256, of 32 up to 512, and so on.

    >>> [bucket(rows) for rows in (0, 3, 9, 130, 500, 1025)]
    [0, 4, 16, 144, 512, 1152]
    """
    if rows <= STEPS:
        return 0 if rows == 0 else 1 << (rows - 1).bit_length()
    step = max(STEPS, (1 << ((rows - 1).bit_length() - 1)) // STEPS)
    return -(-rows // step) * step


def buckets(most: int) -> tuple[int, ...]:
    """Return all members up to ``most``, rising."""
    members, last = [], 0
    while (last := bucket(last + 1)) <= most:
        members.append(last)
    return tuple(members)


def chunked(rows: int, chunk: int) -> int:
    """Return the rows of whole chunks and of a last one that is filled up, but never over ``chunk``.

    >>> chunked(300, 256), chunked(250, 250)
    (304, 250)
    """
    whole, rest = divmod(rows, chunk)
    return whole * chunk + min(chunk, bucket(rest))
