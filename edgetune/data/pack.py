"""Which examples share a row: best fit, longest first.

An example is never split and a row never holds more than the context.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

from edgetune.data.token_store import Counts, Integers


def pack(lengths: Counts, context: int) -> Integers:
    """Return for each example the number of its row, so that no row exceeds ``context``.

    Every example goes into the fullest row that still has room for it.

    >>> pack(np.array([3, 5, 2, 4]), 8).tolist()
    [0, 0, 1, 1]
    """
    row_of = np.zeros(len(lengths), np.int64)
    open_rows: dict[int, list[int]] = {}  # room left -> rows that have exactly this much
    rooms: list[int] = []  # the keys of open_rows, sorted
    count = 0
    for index in np.argsort(-lengths, kind="stable"):
        row, room = _fullest(rooms, open_rows, int(lengths[index])) or (count, context)
        count += row == count
        row_of[index] = row
        _put(rooms, open_rows, row, room - int(lengths[index]))
    return row_of


def _fullest(
    rooms: list[int], open_rows: dict[int, list[int]], length: int
) -> tuple[int, int] | None:
    position = bisect_left(rooms, length)
    if position == len(rooms):
        return None
    room = rooms[position]
    row = open_rows[room].pop()
    if not open_rows[room]:
        del open_rows[room], rooms[position]
    return row, room


def _put(rooms: list[int], open_rows: dict[int, list[int]], row: int, room: int) -> None:
    if room == 0:
        return
    if room not in open_rows:
        open_rows[room] = []
        insort(rooms, room)
    open_rows[room].append(row)
