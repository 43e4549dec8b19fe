"""Short convolutions as the MLX engine writes them.

B rows, S positions, D channels, K taps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from edgetune.memory.lazy.convolution import convolved
from edgetune.memory.lazy.elementwise import cast, multiply
from edgetune.memory.lazy.gradients import recomputed
from edgetune.memory.lazy.graph import Array
from edgetune.memory.lazy.views import split
from edgetune.network.mixers.short_convolution import ShortConvolution
from edgetune.storage import FLOAT32_BYTES


def mixed(
    mixer: ShortConvolution,  # noqa: ARG001
    inputs: Sequence[Array],
    own: Mapping[str, Array],
    *,
    documents: bool,
) -> Array:
    """Return ``c * convolution(b * u)`` (B, S, D) of x (B, S, 3 D)."""
    return recomputed(partial(_gated, documents=documents), *inputs, *own.values())


def _gated(x: Array, weight: Array, bias: Array | None = None, *, documents: bool) -> Array:
    b, c, u = split(cast(x, FLOAT32_BYTES), (x.shape[-1] // 3,) * 3)
    return cast(multiply(convolved(multiply(b, u), weight, bias, documents=documents), c), x.width)
