"""Which rows are kept for validation: decided by what is in them and a seed.

The order of the file does not matter, and rows that are the same stay on one side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# SplitMix64 (Steele, Lea & Flood 2014): a bijection, so that rows stay apart under any seed.
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def seeded(digests: Hashes, seed: int) -> Hashes:
    """Return a number for each row, (R,), that depends on the digest of the row and the seed."""
    mixed: Hashes = digests + np.uint64((seed + 1) * _GAMMA % 2**64)
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def held_out(hashes: Hashes, share: float) -> NDArray[np.bool_]:
    """Return which rows are for validation, (R,): the ``share`` of distinct rows hashed lowest.

    At least one row is, unless the share is 0 or there are no two different rows.
    """
    distinct = np.unique(hashes)
    if share == 0 or len(distinct) < 2:
        return np.zeros(len(hashes), dtype=np.bool_)
    count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
    return np.asarray(hashes <= distinct[count - 1])


def count_duplicates(digests: Hashes) -> int:
    """Return how many rows are the same as an earlier one."""
    return len(digests) - len(np.unique(digests))
