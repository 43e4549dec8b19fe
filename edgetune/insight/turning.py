"""How training changed a matrix: how much longer its rows became, and how far they turned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Turning:
    """Sums over output rows, so that parts of a matrix can be added.

    Each row is what one output of a projection is computed with (Liu et al. 2024, equations 3, 4).
    """

    magnitude: float = 0.0
    """Of the absolute differences of the rows' norms."""
    direction: float = 0.0
    """Of ``1 - cos`` between each row before and after."""
    rows: int = 0

    def __add__(self, other: Turning) -> Turning:
        """Return the sums over both parts."""
        return Turning(
            self.magnitude + other.magnitude,
            self.direction + other.direction,
            self.rows + other.rows,
        )

    @property
    def mean_magnitude(self) -> float:
        """The mean change of a row's norm."""
        return self.magnitude / max(1, self.rows)

    @property
    def mean_direction(self) -> float:
        """The mean of ``1 - cos``."""
        return self.direction / max(1, self.rows)


def turning(before: Float32, after: Float32) -> Turning:
    """Return how rows (R, K) changed; a row of zeros has no direction and turned nowhere."""
    one, other = before.astype(np.float64), after.astype(np.float64)
    norms = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a b, of unit vectors: exact where a cosine is all but 1
    units = [
        x / np.where(norm == 0, 1, norm)[:, None]
        for x, norm in zip((one, other), norms, strict=True)
    ]
    turned = np.square(units[0] - units[1]).sum(1) / 2
    turned[(norms[0] == 0) | (norms[1] == 0)] = 0
    return Turning(float(np.abs(norms[1] - norms[0]).sum()), float(turned.sum()), len(one))


def correlation(points: list[tuple[float, float]]) -> float | None:
    """Return Pearson's correlation of pairs; None where there are too few, or one does not vary."""
    pairs = np.array(points, np.float64).reshape(-1, 2)
    if len(pairs) < 3 or not pairs.std(0).all():
        return None
    return float(np.corrcoef(pairs.T)[0, 1])
