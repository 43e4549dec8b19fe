"""Convolutions over a few tokens as the MLX engine writes them, each document on its own.

B rows, S positions, D channels, K taps.
"""

from __future__ import annotations

from functools import partial

from edgetune.memory.lazy.arrays import counted
from edgetune.memory.lazy.elementwise import add, cast, compared, multiply, where
from edgetune.memory.lazy.gradients import recomputed
from edgetune.memory.lazy.graph import Array
from edgetune.memory.lazy.views import cut, pad, split, squeeze, swapaxes
from edgetune.storage import FLOAT32_BYTES


def short_convolution(x: Array, weight: Array, bias: Array | None, *, documents: bool) -> Array:
    """Return ``c * convolution(b * u)`` (B, S, D) of x (B, S, 3 D) with weight (D, 1, K)."""
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return recomputed(partial(_gated, documents=documents), *inputs)


def _gated(x: Array, weight: Array, bias: Array | None = None, *, documents: bool) -> Array:
    b, c, u = split(cast(x, FLOAT32_BYTES), (x.shape[-1] // 3,) * 3)
    return cast(multiply(convolved(multiply(b, u), weight, bias, documents=documents), c), x.width)


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
