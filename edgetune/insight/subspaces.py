"""How much of one adapter's directions lies in another's: LoRA with rank 8 against rank 64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def overlaps(one: NDArray[np.float32], other: NDArray[np.float32]) -> Float64:
    """Return the normalised similarity of two matrices' leading directions, (r, s).

    Rows of ``one`` (r, K) and ``other`` (s, K) are directions of one space. At (i, j) stands
    ``||U_i V_j^T||^2 / min(i, j)`` for the first i + 1 and j + 1 singular vectors: 1 where the smaller
    space lies in the larger one, 0 where they are orthogonal (Hu et al. 2022, equation 4).
    """
    products = np.square(_directions(one) @ _directions(other).T)
    sums = products.cumsum(0).cumsum(1)
    rows, columns = np.indices(sums.shape) + 1
    found: Float64 = sums / np.minimum(rows, columns)
    return found


def by_chance(rank: int, other: int, size: int) -> float:
    """Return what random subspaces of these ranks in ``size`` dimensions would have on average.

    >>> by_chance(8, 64, 4096)
    0.015625
    """
    return min(1.0, max(rank, other) / size)


def _directions(rows: NDArray[np.float32]) -> Float64:
    """Return the right singular vectors, those of the largest values first, as rows."""
    _, _, found = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    directions: Float64 = found
    return directions
