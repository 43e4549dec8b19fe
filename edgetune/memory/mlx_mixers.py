"""Bytes that mixers without attention hold for a moment on MLX, as measured on it.

Sums are in float32; what is narrower is widened before.
"""

from __future__ import annotations

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.shape import ShortConvolution
from edgetune.storage import FLOAT32_BYTES

PARTS = 3
"""What a short convolution reads side by side."""

FORWARD, BACKWARD = 5, 8
"""Arrays of all channels that a convolution holds in float32, on its way and on its way back."""


def convolution_forward(ledger: Ledger, rows: BatchShape, mixer: ShortConvolution) -> None:
    """Convolve; the output is counted by who asks."""
    ledger.transient((FORWARD + _widened(rows)) * _wide(rows, mixer))


def convolution_backward(ledger: Ledger, rows: BatchShape, mixer: ShortConvolution) -> int:
    """Go back; return the bytes of the gradient of what was read, which stay."""
    ledger.transient((BACKWARD + 2 * _widened(rows)) * _wide(rows, mixer))
    return ledger.alloc(rows.activation_bytes(PARTS * mixer.channels))


def _wide(rows: BatchShape, mixer: ShortConvolution) -> int:
    return FLOAT32_BYTES * rows.tokens * mixer.channels


def _widened(rows: BatchShape) -> int:
    return 0 if rows.width == FLOAT32_BYTES else PARTS
