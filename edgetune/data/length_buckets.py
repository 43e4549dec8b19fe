"""The few row lengths that unpacked examples are padded to.

Few: nothing is compiled twice, and memory can be planned; chosen from the lengths of
the examples, so that little is padded.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations

import numpy as np

from edgetune.buckets import bucket, buckets
from edgetune.data.token_store import Counts, Integers

WIDTHS = 4
_CANDIDATES = 24


def row_widths(lengths: Counts, context: int) -> Integers:
    """Return at most four row lengths, rising, the last of which holds the longest example.

    The candidates are those of :mod:`edgetune.buckets`, never over the context; of all ways to
    choose among them the one that pads least is taken.
    """
    candidates = _candidates(int(lengths.max()), context)
    up_to = np.searchsorted(np.sort(lengths), candidates, side="right")
    last = len(candidates) - 1
    choices: list[tuple[int, ...]] = [
        (*inner, last)
        for count in range(min(WIDTHS, len(candidates)))
        for inner in combinations(range(last), count)
    ]
    best = min(choices, key=partial(_positions, candidates, up_to))
    return candidates[list(best)]


def _candidates(longest: int, context: int) -> Integers:
    widths = buckets(bucket(longest))
    while len(widths) > _CANDIDATES:
        widths = widths[::-2][::-1]
    return np.unique(np.minimum(widths, context))


def _positions(widths: Integers, up_to: Integers, choice: tuple[int, ...]) -> int:
    rows = np.diff(up_to[list(choice)], prepend=0)
    return int(rows @ widths[list(choice)])
