"""Which rows are kept for validation: decided by what is in them and a seed.

The order of the file does not matter, and rows that are the same stay on one side.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from edgetune.data.examples import Examples


def row_hashes(examples: Examples, seed: int) -> NDArray[np.uint64]:
    """Return a number for each row, (N,), that depends on its tokens, its mask and the seed."""
    salt = (seed % 2**64).to_bytes(8, "little")
    digests = (
        blake2b(tokens.tobytes() + mask.tobytes(), digest_size=8, salt=salt).digest()
        for tokens, mask in examples
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def held_out(hashes: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Return which rows are for validation, (N,): the ``share`` of distinct rows hashed lowest.

    At least one row is, unless the share is 0 or there are no two different rows.
    """
    distinct = np.unique(hashes)
    if share == 0 or len(distinct) < 2:
        return np.zeros(len(hashes), dtype=np.bool_)
    count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
    return np.asarray(hashes <= distinct[count - 1])


def count_duplicates(hashes: NDArray[np.uint64]) -> int:
    """Return how many rows are the same as an earlier one."""
    return len(hashes) - len(np.unique(hashes))
