"""Norms, rotation and activations: element by element; each keeps its inputs only."""

from __future__ import annotations

from functools import partial
from math import pi, sqrt

import mlx.core as mx

from edgetune.shape import NormKind, Rotary
from edgetune_mlx.linear import recomputed


def norm(x: mx.array, kind: NormKind, weight: mx.array, bias: mx.array | None) -> mx.array:
    """Return x normalised over its last axis as the model's norms do, rounded once."""
    wide = weight.astype(mx.float32) + kind.offset if kind.offset else weight
    inputs = (x, wide) if bias is None else (x, wide, bias)
    return recomputed(partial(_norm, kind=kind))(*inputs)


def gated_activation(gate: mx.array, up: mx.array, name: str) -> mx.array:
    """Return ``activation(gate) * up``."""
    return recomputed(lambda gate, up: activation(gate, name) * up)(gate, up)


def plain_activation(x: mx.array, name: str) -> mx.array:
    """Return ``activation(x)``."""
    return recomputed(lambda x: activation(x, name))(x)


def activation(x: mx.array, name: str) -> mx.array:
    """Return the named activation of x."""
    match name:
        case "silu":
            return x * mx.sigmoid(x)
        case "gelu":
            return x * (1 + mx.erf(x / sqrt(2))) / 2
        case "gelu_tanh":
            inner = sqrt(2 / pi) * (x + 0.044715 * x * x * x)
            return x * (1 + mx.tanh(inner)) / 2
        case "relu":
            return mx.maximum(x, 0)
        case other:
            raise ValueError(f"the model's shape should have refused the activation {other!r}")


def rotate(
    x: mx.array, frequencies: mx.array, rotary: Rotary, positions: mx.array | int
) -> mx.array:
    """Return x (B, heads, S, h) with its leading channels rotated by position.

    ``frequencies`` (d/2,) are angles per position; channel i pairs with i + d/2. ``positions``
    is that of the first token, or (B, S) where rows hold several documents.
    """
    size, factor = rotary.dimensions, rotary.attention_factor
    if not isinstance(positions, int):
        return _rotated(x, positions[:, None, :, None] * frequencies, size, factor)
    if factor != 1.0:
        x = mx.concatenate([x[..., :size] * factor, x[..., size:]], axis=-1)
    rotated = partial(
        mx.fast.rope,
        dims=size, traditional=False, base=None, scale=1.0, offset=positions,
        freqs=1 / frequencies,
    )  # fmt: skip
    return recomputed(rotated)(x)


def _rotated(x: mx.array, angles: mx.array, size: int, factor: float) -> mx.array:
    """Return x rotated by angles (B, 1, S, d/2)."""
    cos, sin = (part.astype(x.dtype) for part in (mx.cos(angles) * factor, mx.sin(angles) * factor))
    first, second = x[..., : size // 2], x[..., size // 2 : size]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return mx.concatenate([*turned, x[..., size:]], axis=-1)


def _norm(
    x: mx.array, weight: mx.array, bias: mx.array | None = None, *, kind: NormKind
) -> mx.array:
    if kind.kind == "rms":
        return mx.fast.rms_norm(x, weight, kind.eps).astype(x.dtype)
    return mx.fast.layer_norm(x, weight, bias, kind.eps).astype(x.dtype)
