"""Bytes of the optimizer: its moving averages, and what an update of one tensor takes."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.storage import WIDE

SMALLEST = 4096
"""Tensors of fewer elements keep float32 averages."""

BLOCK = 256
"""Elements that share a float32 scale."""

CHUNK = 1 << 20
"""Elements that are updated at a time."""


def state_bytes(sizes: Sequence[int], optimizer: str) -> int:
    """Return the bytes of both averages of tensors of these sizes."""
    return sum(2 * _average(size, optimizer) for size in sizes)


def update_bytes(sizes: Sequence[int], optimizer: str) -> int:
    """Return the bytes that an update holds for a moment."""
    largest = min(CHUNK, max(sizes))
    copies = 3 if optimizer == "adamw" else 9
    return copies * WIDE * largest


def _average(size: int, optimizer: str) -> int:
    if optimizer == "adamw" or size < SMALLEST:
        return WIDE * size
    if optimizer.startswith("paged"):
        return 0
    return size + WIDE * -(-size // BLOCK)
