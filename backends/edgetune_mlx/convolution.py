"""Depthwise causal convolutions over a few tokens, and the mixer that LFM2 makes of one.

Sums are in float32 and rounded once; the backward pass starts from the inputs alone. Each document
is convolved on its own: what stands before its first token counts as zero. B rows, S positions,
D channels, K taps.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from edgetune_mlx.linear import recomputed


def short_convolution(
    x: mx.array, weight: mx.array, bias: mx.array | None, documents: mx.array | None
) -> mx.array:
    """Return ``c * convolution(b * u)`` (B, S, D) of x (B, S, 3 D) with weight (D, 1, K)."""
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return recomputed(partial(_gated, documents=documents))(*inputs)


def short_convolution_after(
    x: mx.array, weight: mx.array, bias: mx.array | None, before: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Return the same of the next tokens of one document, and what its next ones need.

    ``before`` (1, K - 1, D) is what this returned for the tokens before; None at the beginning.
    """
    b, c, u = _wide(x)
    y, after = convolved_after(b * u, weight, bias, before)
    return (y * c).astype(x.dtype), after


def convolved(
    x: mx.array, weight: mx.array, bias: mx.array | None, documents: mx.array | None
) -> mx.array:
    """Return the convolution (B, S, D) of x (B, S, D) in float32."""
    taps = weight[:, 0].T.astype(mx.float32)  # (K, D)
    y = x * taps[-1]
    for back in range(1, min(len(taps), x.shape[1])):
        part = x[:, :-back] * taps[-1 - back]
        if documents is not None:
            same = documents[:, back:] == documents[:, :-back]
            part = mx.where(same[..., None], part, 0)
        y = y + mx.pad(part, [(0, 0), (back, 0), (0, 0)])
    return y if bias is None else y + bias.astype(mx.float32)


def convolved_after(
    x: mx.array, weight: mx.array, bias: mx.array | None, before: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Return the convolution of the next tokens of one document, and the last inputs (1, K - 1, D)."""
    kept = weight.shape[2] - 1
    if before is None:
        before = mx.zeros((1, kept, x.shape[2]), x.dtype)
    whole = mx.concatenate([before, x], axis=1)
    last = whole[:, whole.shape[1] - kept :]
    return convolved(whole, weight, bias, None)[:, kept:], last


def _gated(
    x: mx.array, weight: mx.array, bias: mx.array | None = None, *, documents: mx.array | None
) -> mx.array:
    b, c, u = _wide(x)
    return (convolved(b * u, weight, bias, documents) * c).astype(x.dtype)


def _wide(x: mx.array) -> list[mx.array]:
    return list(mx.split(x.astype(mx.float32), 3, axis=-1))
