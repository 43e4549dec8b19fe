"""The least value of a function of a few numbers, without its gradient (Nelder and Mead 1965)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Point = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Found:
    """The best point that was tried, its value, and how many were tried."""

    point: tuple[float, ...]
    value: float
    evaluations: int


class _SpentError(Exception):
    """No more points may be tried."""


class _Counted:
    """A function that remembers its best point and ends after some calls."""

    def __init__(self, function: Callable[[Point], float], most: int, bound: float) -> None:
        self.function, self.most, self.bound = function, most, bound
        self.count, self.best, self.point = 0, float("inf"), np.zeros(0)

    def __call__(self, point: Point) -> float:
        if self.count == self.most:
            raise _SpentError
        inside = np.clip(point, -self.bound, self.bound)
        value, self.count = self.function(inside), self.count + 1
        if value < self.best:
            self.best, self.point = value, inside
        return value


def minimise(
    function: Callable[[Point], float],
    corners: Sequence[Sequence[float]],
    *,
    evaluations: int,
    bound: float,
    tolerance: float = 1e-3,
) -> Found:
    """Return the best of at most ``evaluations`` points, each number within ``bound`` of 0.

    ``corners`` are where the search begins, one more than there are numbers. It ends where all
    corners have values within ``tolerance``.
    """
    counted = _Counted(function, evaluations, bound)
    with suppress(_SpentError):
        points = [np.array(corner, np.float64) for corner in corners]
        values = [counted(point) for point in points]
        while max(values) - min(values) > tolerance:
            _move(points, values, counted)
    return Found(tuple(map(float, counted.point)), counted.best, counted.count)


def _move(points: list[Point], values: list[float], function: Callable[[Point], float]) -> None:
    """Replace the worst corner, or draw all towards the best."""
    order = np.argsort(values, kind="stable")
    points[:], values[:] = [points[i] for i in order], [values[i] for i in order]
    middle, worst = np.mean(points[:-1], axis=0), points[-1]
    tried = [middle + (middle - worst)]
    found = [function(tried[0])]
    if found[0] < values[0]:
        tried.append(middle + 2 * (middle - worst))
        found.append(function(tried[1]))
    elif found[0] >= values[-2]:
        outside = found[0] < values[-1]
        tried.append(middle + (0.5 if outside else -0.5) * (middle - worst))
        found.append(function(tried[1]))
    best = int(np.argmin(found))
    if found[best] < values[-1]:
        points[-1], values[-1] = tried[best], found[best]
        return
    points[1:] = [points[0] + 0.5 * (point - points[0]) for point in points[1:]]
    values[1:] = [function(point) for point in points[1:]]
