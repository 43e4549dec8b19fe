"""How many rows are unpacked at a time."""

from __future__ import annotations

from collections.abc import Iterator

from edgetune.tensors.packed.kinds import SPAN


def spans(start: int, stop: int, inputs: int) -> Iterator[tuple[int, int]]:
    """Yield where runs of rows of so many numbers begin and end.

    >>> list(spans(0, 5, 100_000))
    [(0, 2), (2, 4), (4, 5)]
    """
    step = max(1, SPAN // max(1, inputs))
    for first in range(start, stop, step):
        yield first, min(first + step, stop)
