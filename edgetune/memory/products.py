"""Frozen projections: what torch multiplies with, and what unpacking it takes beside.

T tokens, K inputs, N outputs. Scratch that outlives a product is counted in
:mod:`edgetune.memory.scratch`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
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
    """Hold what unpacking 4-bit weights needs beside scratch: scales, twice while decoded."""
    if product.quantized and rows.keeps_scratch:
        ledger.transient(3 * FLOAT32_BYTES * -(-product.inputs * product.outputs // 64))
