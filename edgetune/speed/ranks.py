"""What several ranks do to the time of a step, and what they send each other."""

from __future__ import annotations

from math import ceil

from edgetune.world import Place


def gradient_bytes(parameters: int, world: int) -> int:
    """Return the bytes that each rank sends in a step: a sum over a ring, in float32.

    N - 1 of N parts are sent to be added up, and as many again to be handed on (Patarasuk & Yuan
    2009, section 3).
    """
    return ceil(4 * parameters * 2 * (world - 1) / world)


def speed_up(micro_batches: int, place: Place, *, one_device: bool) -> float:
    """Return how many times as fast steps are as those of one rank with a machine of its own.

    The rank with most of the ``micro_batches`` of a step decides; ranks that share ``one_device``
    share its rate.
    """
    sharing = place.local_world if one_device else 1
    return micro_batches / ceil(micro_batches / place.world) / sharing
