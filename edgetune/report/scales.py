"""Axes: round numbers on them, and where a value lies between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgetune.report.series import Floats

LABEL = 0.26
"""Share of a narrow axis that the label at its end needs."""

_LEAST = 1e-12
"""Where a logarithmic axis begins at the lowest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """An axis from ``low`` to ``high`` with its ticks; ``log`` axes hold positive values."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, values: Floats) -> Floats:
        """Return where values lie, 0 at ``low`` and 1 at ``high``."""
        if not self.log:
            return (values - self.low) / (self.high - self.low)
        span = math.log(self.high) - math.log(self.low)
        shares: Floats = (np.log(np.maximum(values, self.low)) - math.log(self.low)) / span
        return shares

    def at(self, value: float) -> float:
        """Return where one value lies."""
        return float(self.share(np.array([value]))[0])


def linear(low: float, high: float, count: int = 5) -> Scale:
    """Return an axis over values, with round ticks, beginning and ending at one."""
    size = max(abs(low), abs(high))
    if size < 1e-300:
        low, high = 0.0, 1.0
    elif high - low <= 1e-6 * size:
        low, high = low - 0.1 * size, high + 0.1 * size
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{step * number:.12g}") for number in range(first, last + 1))
    return Scale(low=ticks[0], high=ticks[-1], ticks=ticks)


def steps(last: float, count: int = 5) -> Scale:
    """Return an axis from 0 to exactly ``last``."""
    inner = linear(0.0, max(last, 1.0), count)
    high = max(last, 1.0)
    room = (1 - LABEL) * high
    ticks = tuple(tick for tick in inner.ticks if tick <= room and tick == int(tick))
    return Scale(low=0.0, high=high, ticks=(*ticks, high))


def logarithmic(low: float, high: float) -> Scale:
    """Return an axis over positive values, with ticks at 1, 2 and 5 times powers of ten."""
    high = max(high, _LEAST)
    low = max(low, high * 1e-6, _LEAST)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    round_ones = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    below = [tick for tick in round_ones if tick <= low * 1.0001][-1]
    above = next(tick for tick in round_ones if tick >= high * 0.9999 and tick > below)
    ticks = [tick for tick in round_ones if below <= tick <= above]
    if len(ticks) > 7:
        tens = [tick for tick in ticks if math.isclose(math.log10(tick) % 1, 0, abs_tol=1e-9)]
        ticks = tens if len(tens) >= 3 else ticks[:: len(ticks) // 6]
    return Scale(low=below, high=above, ticks=tuple(ticks), log=True)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * 0.9999)
