"""What several ranks do to the time of a step, and what they send each other."""

from __future__ import annotations

from math import ceil


def gradient_bytes(parameters: int, world: int) -> int:
    """Return the bytes that each rank sends in a step: a sum over a ring, in float32.

    N - 1 of N parts are sent to be added up, and as many again to be handed on (Patarasuk & Yuan
    2009, section 3).
    """
    return ceil(4 * parameters * 2 * (world - 1) / world)


def step_seconds(seconds_per_row: float, rows: int, world: int, sent: int, rate: float) -> float:
    """Return the time of a step of so many rows on ranks that are alike and send over a network.

    Each sends ``sent`` bytes at ``rate`` bytes/s when it has computed its rows, which are not divided.

    >>> step_seconds(2.0, 8, 3, 1000, 1000.0)
    7.0
    """
    return seconds_per_row * ceil(rows / world) + sent / rate


def speed_up(micro_batches: int, world: int) -> float:
    """Return how many times as fast steps are as those of one rank alone.

    The rank with most of the ``micro_batches`` of a step decides.

    >>> speed_up(4, 2), speed_up(3, 2)
    (2.0, 1.5)
    """
    return micro_batches / ceil(micro_batches / world)


def least_bandwidth(sent: int, seconds: float, times: float) -> float | None:
    """Return the bytes/s below which one rank alone is faster; None: it is always as fast.

    It takes ``seconds`` for a step alone; together they are ``times`` as fast and each sends ``sent`` bytes.

    >>> least_bandwidth(10_000, 4.0, 2.0)
    5000.0
    """
    saved = seconds * (1 - 1 / times)
    return sent / saved if saved > 0 else None
