"""How much slower this processor is at this moment than one on which figures in seconds hold."""

from __future__ import annotations

import time

USUAL = 0.07
"""Seconds of processor that the work below takes at 2.5 GHz with nothing beside it."""


def slowness() -> float:
    """Return the factor, at least 1: neighbours take caches and turns of a processor that is shared."""
    begun = time.process_time()
    sum(number * number % 7 for number in range(1_000_000))
    return max(1.0, (time.process_time() - begun) / USUAL)
