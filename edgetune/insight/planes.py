"""The plane near which the activations of right answers lie: their mean and principal components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Plane:
    """An affine plane in D dimensions: a point of it, and k orthonormal directions (k, D)."""

    mean: Points
    directions: Points

    @classmethod
    def near(cls, points: Points, share: float) -> Plane:
        """Return the plane of the fewest principal components that have a share of the variance.

        >>> flat = np.array([[0.0, 0, 1], [2, 0, 1], [0, 1, 1], [2, 1, 1]])
        >>> plane = Plane.near(flat, 0.99)
        >>> len(plane.directions), plane.off(np.array([[5.0, 7.0, 4.0]])).round(6).tolist()
        (2, [[0.0, 0.0, 3.0]])
        """
        mean = points.mean(0)
        _, lengths, directions = np.linalg.svd(points - mean, full_matrices=False)
        explained = np.cumsum(lengths**2)
        count = int(np.searchsorted(explained, share * explained[-1])) + 1
        return cls(mean, directions[: min(count, int(np.count_nonzero(lengths > 0)))])

    def off(self, points: Points) -> Points:
        """Return what of points (N, D) is not in the plane: from their projections to them."""
        centred = points - self.mean
        found: Points = centred - centred @ self.directions.T @ self.directions
        return found
