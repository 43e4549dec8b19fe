"""Depthwise causal convolutions over a few tokens.

Sums are in float32. Each document is convolved on its own: what stands before its first token
counts as zero. B rows, S positions, D channels, K taps.
"""

from __future__ import annotations

import mlx.core as mx


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
