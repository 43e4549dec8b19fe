"""Frozen projections: what torch multiplies with, and what unpacking it takes beside.

T tokens, K inputs, N outputs. Scratch that outlives a product is counted in
:mod:`edgetune.memory.scratch`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.memory.scratch import UNPACKED_ON_CARD
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One projection."""

    inputs: int
    outputs: int
    quantized: bool

    def dense(self, rows: BatchShape) -> int:
        """Return the bytes of the dense weights where no scratch keeps them."""
        if not rows.dense or rows.keeps_scratch:
            return 0
        return self.inputs * self.outputs * rows.product


def unpack(ledger: Ledger, product: Product, rows: BatchShape) -> None:
    """Hold what unpacking 4-bit weights needs beside scratch: scales, twice while decoded.

    On a card without a kernel for it they are there beside the dense weights, too, and beside a
    piece of values and of indices.
    """
    if not product.quantized or rows.kernels:
        return
    numbers = product.inputs * product.outputs
    scales = FLOAT32_BYTES * -(-numbers // 64)
    if rows.keeps_scratch:
        ledger.transient(3 * scales)
        return
    piece = 3 * FLOAT32_BYTES * min(UNPACKED_ON_CARD, numbers // 2)
    ledger.transient(max(3 * scales, scales + product.dense(rows) + piece))
