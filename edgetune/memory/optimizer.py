"""Bytes of the optimizer: its moving averages, and what an update of one tensor takes."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.memory.costs import Costs
from edgetune.settings.spec import PAGED
from edgetune.storage import FLOAT32_BYTES

SMALLEST = 4096
"""Tensors of fewer elements keep float32 averages."""

BLOCK = 256
"""Elements that share a float32 scale."""


def state_bytes(sizes: Sequence[int], optimizer: str) -> int:
    """Return the bytes of both averages of tensors of these sizes."""
    return sum(2 * _average(size, optimizer) for size in sizes)


ENTRY = 72
"""Bytes of a tensor in the tables of a card's kernel: eight addresses and sizes, two factors."""


def update_bytes(
    sizes: Sequence[int], optimizer: str, costs: Costs, *, kernels: bool = False
) -> int:
    """Return the bytes that an update holds, for its largest tensor; with ``kernels`` tables alone.

    Both averages, the weights and a deviation of each element; with averages in 8 bits a table's
    index besides, the new codes, and a scale a block.
    """
    if kernels:
        return ENTRY * len(sizes)
    largest = max(sizes)
    if costs.updated_at_once is None:
        return costs.update_arrays * FLOAT32_BYTES * largest
    size = min(largest, costs.updated_at_once)
    if optimizer == "adamw" or largest < SMALLEST:
        return costs.update_arrays * FLOAT32_BYTES * size
    blocks = -(-size // BLOCK)
    return blocks * (BLOCK * (5 * FLOAT32_BYTES + 2) + 2 * FLOAT32_BYTES)


def _average(size: int, optimizer: str) -> int:
    if optimizer == "adamw" or size < SMALLEST:
        return FLOAT32_BYTES * size
    if optimizer == PAGED:
        return 0
    return size + FLOAT32_BYTES * -(-size // BLOCK)
