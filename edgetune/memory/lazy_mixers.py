"""Bytes that mixers without attention hold for a moment on MLX, as measured on it.

Sums are in float32; what is narrower is widened before.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.delta import Arrays
from edgetune.memory.ledger import Ledger
from edgetune.mixer import PIECE
from edgetune.shape import GatedDelta, ShortConvolution
from edgetune.storage import FLOAT32_BYTES

PARTS = 3
"""What a short convolution reads side by side."""

FORWARD, BACKWARD = 5, 8
"""Arrays of all channels that a convolution holds in float32, on its way and on its way back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How many arrays of each size the delta rule holds: of a piece, and of whole rows.

    MLX prepares operations ahead of those that run, of further pieces too: the numbers are fitted
    to peaks of sixty sizes, on Linux.
    """

    convolved: float
    keys: float
    values: float
    pairs: float
    state: float
    states: float
    """Of those between all pieces."""
    rows: float
    """Of the rows' other pieces."""
    narrow: float
    """Of the rows, in float32 if they are narrower."""
    outputs: float


DELTA_FORWARD = Held(
    convolved=1.6, keys=4.6, values=0.0, pairs=14.2, state=3.9, states=0.0, rows=2.3, narrow=1.2,
    outputs=1.5,
)  # fmt: skip
DELTA_BACKWARD = Held(
    convolved=5.0, keys=1.0, values=3.0, pairs=13.0, state=2.0, states=1.0, rows=2.7, narrow=2.7,
    outputs=1.3,
)  # fmt: skip


def mixed_forward(ledger: Ledger, rows: BatchShape, mixer: ShortConvolution | GatedDelta) -> int:
    """Mix; return the bytes of the output, which stays."""
    match mixer:
        case ShortConvolution():
            convolution_forward(ledger, rows, mixer)
            return ledger.alloc(rows.activation_bytes(mixer.channels))
        case GatedDelta():
            ledger.transient(_delta(rows, mixer, DELTA_FORWARD))
            return ledger.alloc(rows.activation_bytes(mixer.values))


def mixed_backward(ledger: Ledger, rows: BatchShape, mixer: ShortConvolution | GatedDelta) -> int:
    """Go back; return the bytes of the gradients of what was read, which stay."""
    match mixer:
        case ShortConvolution():
            return convolution_backward(ledger, rows, mixer)
        case GatedDelta():
            ledger.transient(_delta(rows, mixer, DELTA_BACKWARD))
            return ledger.alloc(rows.activation_bytes(mixer.channels + 2 * mixer.value_heads))


def _delta(rows: BatchShape, mixer: GatedDelta, held: Held) -> int:
    piece = Arrays.of(mixer, rows.batch, min(PIECE, rows.context), documents=rows.documents > 1)
    numbers = rows.tokens * mixer.channels
    return int(
        held.convolved * piece.convolved
        + held.keys * piece.own_keys
        + held.values * piece.values
        + held.pairs * (piece.pairs + piece.hidden)
        + (held.state + held.states * ceil(rows.context / PIECE)) * piece.state
        + held.rows * FLOAT32_BYTES * (numbers - piece.convolved // FLOAT32_BYTES)
        + held.narrow * (FLOAT32_BYTES - rows.width) * numbers
        + held.outputs * rows.activation_bytes(mixer.values)
    )


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
