"""What the optimizer's update takes, and what else is done once a step."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from edgetune.settings.spec import PAGED, OptimizerName
from edgetune.speed.rates import Rates
from edgetune.storage import OPTIMIZER_BYTES

COST = {"adamw": 1.0, "adamw-8bit": 1.5, PAGED: 1.5}
"""Time of an update against plain AdamW's, copies not counted."""

SMALLEST = 4096
"""Numbers of a tensor whose averages are kept in eight bits, if they are."""

STEP, TENSOR, PIECE_WIDE, PIECE_PACKED = 19, 3, 18, 104
"""Operations of a step, of each trained tensor, and of each piece of it by how averages are kept."""

CUT = 7 / 18
"""Further operations where a tensor has several pieces, as a share: each is a view."""


def update_seconds(parameters: int, rates: Rates, optimizer: OptimizerName) -> float:
    """Return the seconds of updating so many numbers, beside those of issuing it."""
    seconds = COST[optimizer] * parameters / rates.optimizer
    if optimizer == PAGED:  # read from the host's memory and written there
        seconds += 2 * OPTIMIZER_BYTES[PAGED] * parameters / rates.link
    return seconds


def update_launches(sizes: Sequence[int], rates: Rates, optimizer: OptimizerName) -> float:
    """Return the operations of a step beside its micro-batches, for trained tensors of these sizes."""
    if rates.fused:  # all of them by one, or two
        return STEP + TENSOR * len(sizes)
    at_once = rates.updated_at_once
    return STEP + sum(TENSOR + _of_tensor(size, at_once, optimizer) for size in sizes)


def _of_tensor(size: int, at_once: int, optimizer: OptimizerName) -> float:
    packed = optimizer != "adamw" and size >= SMALLEST
    each, pieces = PIECE_PACKED if packed else PIECE_WIDE, ceil(size / at_once)
    return pieces * each * (1 + CUT * (pieces > 1))
