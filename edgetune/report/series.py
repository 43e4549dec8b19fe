"""Long series made fit to draw: smoothed, and thinned out without losing an extreme."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLUMNS = 600
"""Pixel columns of a chart: no series needs more than four points in each."""


def smoothed(values: Floats) -> Floats:
    """Return the mean around each value, over a twentieth of the series but at least 7 values.

    The window is centred, so that a falling loss is not shown too high, and narrower at the ends.
    """
    count = len(values)
    reach = np.minimum(np.arange(count), np.arange(count)[::-1])
    reach = np.minimum(reach, max(3, count // 40))
    sums = np.concatenate(([0.0], np.cumsum(np.nan_to_num(values))))
    here = np.arange(count)
    means: Floats = (sums[here + reach + 1] - sums[here - reach]) / (2 * reach + 1)
    return means


def thinned(x: Floats, y: Floats, columns: int = COLUMNS) -> tuple[Floats, Floats]:
    """Return the points of a series that are seen: of each column first, least, most and last.

    ``x`` must not fall. The least and the greatest value of the series are always kept.
    """
    if len(x) <= 4 * columns:
        return x, y
    span = (x[-1] - x[0]) or 1.0
    column = np.minimum((columns * (x - x[0]) / span).astype(np.int64), columns - 1)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    stops = np.append(starts[1:], len(x))
    kept = np.fromiter(
        (i for a, b in zip(starts.tolist(), stops.tolist(), strict=True) for i in _seen(y, a, b)),
        np.int64,
    )
    return x[kept], y[kept]


def _seen(y: Floats, start: int, stop: int) -> list[int]:
    part = y[start:stop]
    return sorted({start, start + int(part.argmin()), start + int(part.argmax()), stop - 1})
