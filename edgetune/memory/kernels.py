"""Bytes of the kernels that a processor keeps for its 16-bit products.

oneDNN makes a kernel for every shape of a product and keeps it. Its cache holds 1,024 of them
unless it is told otherwise; the torch backend tells it :data:`KERNELS`.
"""

from __future__ import annotations

from edgetune.memory.batch_shape import BatchShape
from edgetune.storage import FLOAT32_BYTES

KERNELS = 64
"""Kernels kept at one time: those of a step on rows of two lengths. Another is made in 0.4 ms."""

KERNEL = 700_000
"""Bytes of one: 650 kB, and 950 kB where the product is added to something, whatever the sizes of
the matrices. The machine code is 8 kB of them."""


def kernel_bytes(rows: BatchShape) -> int:
    """Return the bytes of all kernels that are kept; float32 products on a processor keep none."""
    return KERNELS * KERNEL if rows.keeps_scratch and rows.product < FLOAT32_BYTES else 0
