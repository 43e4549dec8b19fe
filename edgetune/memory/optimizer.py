"""Bytes of the optimizer: its moving averages, and what an update of one tensor takes."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.memory.batch_shape import Platform
from edgetune.storage import FLOAT32_BYTES

SMALLEST = 4096
"""Tensors of fewer elements keep float32 averages."""

BLOCK = 256
"""Elements that share a float32 scale."""

CHUNK, CARD_CHUNK = 1 << 16, 1 << 20
"""Elements that are updated at a time, on a processor and on a card."""

MLX_COPIES = 5
"""New arrays of a tensor's size in its update on MLX: three to keep, two in between."""


def state_bytes(sizes: Sequence[int], optimizer: str) -> int:
    """Return the bytes of both averages of tensors of these sizes."""
    return sum(2 * _average(size, optimizer) for size in sizes)


def update_bytes(sizes: Sequence[int], optimizer: str, platform: Platform) -> int:
    """Return the bytes that an update holds, for its largest tensor.

    Both averages, the weights and a deviation of each element; with averages in 8 bits a table's
    index besides, the new codes, and a scale a block.
    """
    largest = max(sizes)
    if platform.lazy:
        return MLX_COPIES * FLOAT32_BYTES * largest
    size = min(largest, CHUNK if platform.keeps_scratch else CARD_CHUNK)
    if optimizer == "adamw" or largest < SMALLEST:
        return 4 * FLOAT32_BYTES * size
    blocks = -(-size // BLOCK)
    return blocks * (BLOCK * (5 * FLOAT32_BYTES + 2) + 2 * FLOAT32_BYTES)


def _average(size: int, optimizer: str) -> int:
    if optimizer == "adamw" or size < SMALLEST:
        return FLOAT32_BYTES * size
    if optimizer.startswith("paged"):
        return 0
    return size + FLOAT32_BYTES * -(-size // BLOCK)
