"""Bytes of a projection's passes: what they hold for a moment, and what they leave.

T tokens, K inputs, N outputs, R rank. Scratch that outlives a product is counted in
:mod:`edgetune.memory.scratch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from edgetune.memory.batch_shape import PIECE, BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One projection; ``rank`` is 0 where it is not adapted, ``trained`` if it is itself.

    ``fixed`` and ``made`` are what :class:`~edgetune.methods.base.Footprint` says of it.
    """

    inputs: int
    outputs: int
    rank: int
    quantized: bool
    trained: bool = False
    fixed: bool = False
    made: bool = False

    def dense(self, rows: BatchShape) -> int:
        """Return the bytes of the dense weights where no scratch keeps them."""
        if self.trained:
            return 0 if rows.width == FLOAT32_BYTES else self.inputs * self.outputs * rows.width
        needed = rows.dense
        if rows.lazy:
            needed = rows.unpacks if self.quantized else rows.recast
        if not needed or rows.keeps_scratch:
            return 0
        return self.inputs * self.outputs * rows.product

    def low(self, rows: BatchShape) -> int:
        """Return the bytes of ``x A^T``, which the backward pass needs; MLX makes it again.

        Not where x is not kept for it. Beside it B is kept where it is made.
        """
        low = 0 if rows.lazy and not self.fixed else rows.tokens * self.rank * rows.product
        return low + FLOAT32_BYTES * self.outputs * self.rank * self.made


def forward(ledger: Ledger, product: Product, rows: BatchShape, *, training: bool) -> int:
    """Multiply; return the bytes of ``x A^T``. The output and these stay."""
    unpack(ledger, product, rows)
    copies, held = _copies(product, rows), product.dense(rows)
    ledger.alloc(copies + held)
    ledger.alloc(rows.activation_bytes(product.outputs))
    low = ledger.alloc(product.low(rows))
    if product.rank and rows.lazy:
        ledger.transient(rows.activation_bytes(product.outputs))
    if product.rank and rows.dropout and training:
        ledger.transient(_mask(product, rows), _dropped(product, rows))
    ledger.free(copies + held)
    return low


def backward(ledger: Ledger, product: Product, rows: BatchShape, *, needed: bool = True) -> int:
    """Go back; return the bytes of the input's gradient, which stay, 0 if not ``needed``."""
    copies = ledger.alloc(_copies(product, rows))
    own = 0
    if not rows.lazy:  # where gradients are counted as they grow
        own = ledger.alloc(FLOAT32_BYTES * product.rank * (product.inputs + product.outputs))
    unpack(ledger, product, rows)
    if product.trained:
        wide = FLOAT32_BYTES * product.inputs * product.outputs
        own += 0 if rows.lazy else ledger.alloc(wide)
        ledger.transient(0 if rows.width == FLOAT32_BYTES else wide // FLOAT32_BYTES * rows.width)
    held = ledger.alloc(product.dense(rows))
    entry = ledger.alloc(rows.activation_bytes(product.inputs)) if needed else 0
    if product.rank:
        low = ledger.alloc(_piece(rows) * product.rank * rows.product)
        largest = max(product.inputs, product.outputs)
        ledger.transient(product.rank * largest * rows.product)
        if rows.dropout:
            pieces = 3 if needed else 2
            ledger.transient(_mask(product, rows), pieces * _dropped(product, rows))
        ledger.free(low)
    ledger.free(copies + own + held)
    return entry


def unpack(ledger: Ledger, product: Product, rows: BatchShape) -> None:
    """Hold what unpacking 4-bit weights needs beside scratch: scales, twice while decoded.

    MLX may hold the dense weights of the product before, too. On a processor it unpacks to the
    type of the scales, which may be another one.
    """
    size = product.inputs * product.outputs
    if product.quantized and rows.keeps_scratch:
        ledger.transient(3 * FLOAT32_BYTES * -(-size // 64))
    if rows.lazy and not product.trained:
        ledger.transient(2 * product.dense(rows), ceil(rows.unpacking * size))


def _copies(product: Product, rows: BatchShape) -> int:
    """Return the bytes of A and B in the type of the product, if that is not float32."""
    if rows.product == FLOAT32_BYTES:
        return 0
    return product.rank * (product.inputs + product.outputs) * rows.product


def _mask(product: Product, rows: BatchShape) -> int:
    return rows.tokens * product.inputs


def _dropped(product: Product, rows: BatchShape) -> int:
    """Return the bytes of a piece of the inputs without what is dropped."""
    return _piece(rows) * product.inputs * rows.product


def _piece(rows: BatchShape) -> int:
    return min(PIECE, rows.tokens) if rows.upcast else rows.tokens
