"""Convolutions over a few tokens as the MLX engine writes them, each document on its own.

B rows, S positions, D channels, K taps.
"""

from __future__ import annotations

from edgetune.memory.lazy.arrays import counted
from edgetune.memory.lazy.elementwise import add, cast, compared, multiply, where
from edgetune.memory.lazy.graph import Array
from edgetune.memory.lazy.views import cut, pad, squeeze, swapaxes
from edgetune.storage import FLOAT32_BYTES


def convolved(x: Array, weight: Array, bias: Array | None, *, documents: bool) -> Array:
    """Return the convolution (B, S, D) of x (B, S, D) in float32."""
    taps = cast(swapaxes(squeeze(cut(weight, 1, 0, 1), 1), 0, 1), FLOAT32_BYTES)
    count, positions = taps.shape[0], x.shape[1]
    y = multiply(x, squeeze(cut(taps, 0, count - 1, count), 0))
    for back in range(1, min(count, positions)):
        tap = squeeze(cut(taps, 0, count - 1 - back, count - back), 0)
        part = multiply(cut(x, 1, 0, positions - back), tap)
        if documents:
            part = where(compared(counted((x.shape[0], positions - back, 1))), part)
        y = add(y, pad(part, 1, back))
    return y if bias is None else add(y, cast(bias, FLOAT32_BYTES))
