"""Short convolutions, LFM2's mixer: a convolution between two gates.

Sums are in float32 and rounded once; the backward pass starts from the inputs alone. B rows, S
positions, D channels, K taps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import mlx.core as mx

from edgetune.network.mixers.short_convolution import ShortConvolution
from edgetune_mlx.convolution import convolved, convolved_after
from edgetune_mlx.linear import recomputed


def mixed(
    mixer: ShortConvolution,  # noqa: ARG001
    inputs: Sequence[mx.array],
    own: Mapping[str, mx.array],
    documents: mx.array | None,
) -> mx.array:
    """Return ``c * convolution(b * u)`` (B, S, D) of x (B, S, 3 D)."""
    return recomputed(partial(_gated, documents=documents))(*inputs, *own.values())


def mixed_after(
    mixer: ShortConvolution,  # noqa: ARG001
    inputs: Sequence[mx.array],
    own: Mapping[str, mx.array],
    before: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """Return the same of the next tokens of one document, and what its next ones need.

    ``before`` (1, K - 1, D) is what this returned for the tokens before; None at the beginning.
    """
    (x,) = inputs
    b, c, u = _wide(x)
    y, after = convolved_after(b * u, own["conv"], own.get("conv_bias"), before)
    return (y * c).astype(x.dtype), after


def _gated(
    x: mx.array, weight: mx.array, bias: mx.array | None = None, *, documents: mx.array | None
) -> mx.array:
    b, c, u = _wide(x)
    return (convolved(b * u, weight, bias, documents) * c).astype(x.dtype)


def _wide(x: mx.array) -> list[mx.array]:
    return list(mx.split(x.astype(mx.float32), 3, axis=-1))
