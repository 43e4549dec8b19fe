"""Bytes of the optimizer: its moving averages, and what an update of one tensor takes."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.storage import FLOAT32_BYTES

SMALLEST = 4096
"""Tensors of fewer elements keep float32 averages."""

BLOCK = 256
"""Elements that share a float32 scale."""

CHUNK = 1 << 20
"""Elements that are updated at a time."""

MLX_COPIES = 4
"""Arrays of a tensor's size in its update on MLX, which waits for more of them to be freed."""


def state_bytes(sizes: Sequence[int], optimizer: str) -> int:
    """Return the bytes of both averages of tensors of these sizes."""
    return sum(2 * _average(size, optimizer) for size in sizes)


def update_bytes(sizes: Sequence[int], optimizer: str, *, mlx: bool) -> int:
    """Return the bytes that an update holds for a moment."""
    if mlx:
        return MLX_COPIES * FLOAT32_BYTES * max(sizes)
    return max(_update(size, optimizer) for size in sizes)


def _update(size: int, optimizer: str) -> int:
    """Return the bytes of one tensor's update: copies of a chunk, in 8 bits more of them."""
    if optimizer != "adamw" and size >= SMALLEST:
        return 13 * FLOAT32_BYTES * min(size, CHUNK) // 2
    second = min(max(size - CHUNK, 0), CHUNK)  # one copy of the first chunk is still there
    return FLOAT32_BYTES * max(2 * min(size, CHUNK), CHUNK + 2 * second if second else 0)


def _average(size: int, optimizer: str) -> int:
    if optimizer == "adamw" or size < SMALLEST:
        return FLOAT32_BYTES * size
    if optimizer.startswith("paged"):
        return 0
    return size + FLOAT32_BYTES * -(-size // BLOCK)
