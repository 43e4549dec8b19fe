"""Which positions of rows are computed together where a block goes over them tile by tile."""

from __future__ import annotations


def spans(positions: int, size: int) -> list[slice]:
    """Return the tiles of ``size`` positions, the last one shorter; 0: all positions in one.

    >>> spans(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = size or max(1, positions)
    return [slice(at, min(at + step, positions)) for at in range(0, positions, step)]


def reaching(span: slice, reach: int) -> slice:
    """Return a tile and the ``reach`` positions before it, as far as there are such.

    >>> reaching(slice(1, 3), 2), reaching(slice(4, 6), 2)
    (slice(0, 3, None), slice(2, 6, None))
    """
    return slice(max(0, span.start - reach), span.stop)
