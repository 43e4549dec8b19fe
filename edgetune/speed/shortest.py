"""The shortest of many times: what a machine can do when nothing else is at work on it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

LEAST = 4
"""Tries: the first is a warm-up."""


def shortest_seconds(work: Callable[[], object], within: float = 0.2) -> float:
    """Return the shortest time that ``work`` took, tried again ``within`` seconds.

    Beside other programs most tries are interrupted, and a few are not.
    """
    best, tries, begun = float("inf"), 0, perf_counter()
    while tries < LEAST or perf_counter() - begun < within:
        before = perf_counter()
        work()
        best, tries = min(best, perf_counter() - before), tries + 1
    return best
