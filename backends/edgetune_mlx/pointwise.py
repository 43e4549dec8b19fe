"""Norms, rotation and activations: element by element; each keeps its inputs only."""

from __future__ import annotations

from functools import partial
from math import pi, sqrt
from typing import Any, Final

import mlx.core as mx

from edgetune.shape import Clamp, NormKind, Rotary
from edgetune_mlx.linear import recomputed

CUBIC: Final = sqrt(2 / pi), 0.044715
"""Of GELU by tanh (Hendrycks & Gimpel 2016): ``tanh(a * (x + b * x^3))``."""


def norm(x: mx.array, kind: NormKind, weight: mx.array | None, bias: mx.array | None) -> mx.array:
    """Return x normalised over its last axis, or groups of it, as the model's norms do.

    It is rounded once.
    """
    if weight is None:
        return recomputed(partial(_plain_norm, kind=kind))(x)
    wide = weight.astype(mx.float32) + kind.offset if kind.offset else weight
    inputs = (x, wide) if bias is None else (x, wide, bias)
    computed = _norm if kind.groups == 1 else _grouped_norm
    return recomputed(partial(computed, kind=kind))(*inputs)


def gated_activation(gate: mx.array, up: mx.array, name: str) -> mx.array:
    """Return ``activation(gate) * up``."""
    custom: Any = mx.custom_function(lambda gate, up: activation(gate, name) * up)

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(primals: Any, cotangent: mx.array, _: Any) -> tuple[mx.array, mx.array]:
        gate, up = mx.depends(list(primals), [cotangent])
        value, slope = _with_slope(gate, name)
        return slope * up * cotangent, value * cotangent

    out: mx.array = custom(gate, up)
    return out


def clamped(gate_up: mx.array, clamp: Clamp) -> mx.array:
    """Return what gpt-oss makes of gate and up, which alternate in the last axis."""
    custom: Any = mx.custom_function(partial(_clamped, clamp=clamp))

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(gate_up: mx.array, cotangent: mx.array, _: Any) -> mx.array:
        return _clamped_back(mx.depends([gate_up], [cotangent])[0], cotangent, clamp)

    out: mx.array = custom(gate_up)
    return out


def _clamped_back(gate_up: mx.array, grad: mx.array, clamp: Clamp) -> mx.array:
    """Return the gradient of gate and up, which alternate, for that of what they make."""
    gate, up = gate_up[..., ::2], gate_up[..., 1::2]
    least = mx.minimum(gate, clamp.limit)
    share = mx.sigmoid(least * clamp.alpha)
    slope = share * (1 + clamp.alpha * least * (1 - share))
    factor = mx.where(gate <= clamp.limit, mx.clip(up, -clamp.limit, clamp.limit) + 1, 0)
    up_grad = mx.where(mx.abs(up) <= clamp.limit, least * share * grad, 0)
    return mx.stack([slope * factor * grad, up_grad], axis=-1).reshape(gate_up.shape)


def _clamped(gate_up: mx.array, *, clamp: Clamp) -> mx.array:
    gate = mx.minimum(gate_up[..., ::2], clamp.limit)
    up = mx.clip(gate_up[..., 1::2], -clamp.limit, clamp.limit)
    return gate * mx.sigmoid(gate * clamp.alpha) * (up + 1)


def plain_activation(x: mx.array, name: str) -> mx.array:
    """Return ``activation(x)``."""
    custom: Any = mx.custom_function(lambda x: activation(x, name))

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(x: mx.array, cotangent: mx.array, _: Any) -> mx.array:
        return _with_slope(mx.depends([x], [cotangent])[0], name)[1] * cotangent

    out: mx.array = custom(x)
    return out


def activation(x: mx.array, name: str) -> mx.array:
    """Return the named activation of x."""
    match name:
        case "silu":
            return x * mx.sigmoid(x)
        case "gelu" | "gelu_tanh":
            return x * _share(x, name)
        case "relu":
            return mx.maximum(x, 0)
        case "sigmoid":
            return mx.sigmoid(x)
        case "relu2":
            return mx.square(mx.maximum(x, 0))
        case other:
            raise ValueError(f"the model's shape should have refused the activation {other!r}")


def _with_slope(x: mx.array, name: str) -> tuple[mx.array, mx.array]:
    """Return the named activation of x and its derivative.

    By hand, because MLX's own way makes an array for every term: each line here ends in one that
    takes the place of another.
    """
    if name == "relu":
        return mx.maximum(x, 0), (x > 0).astype(x.dtype)
    if name == "relu2":
        positive = mx.maximum(x, 0)
        return mx.square(positive), 2 * positive
    if name == "sigmoid":
        value = mx.sigmoid(x)
        return value, (1 - value) * value
    share = mx.sigmoid(x) if name == "silu" else _share(x, name)
    value = x * share
    if name == "silu":
        return value, (1 - share) * value + share
    if name == "gelu":
        density = mx.exp(x * x * -0.5) * (1 / sqrt(2 * pi))
        return value, density * x + share
    growth = 2 * CUBIC[0] * (1 + 3 * CUBIC[1] * (x * x))
    return value, (1 - share) * growth * value + share


def _share(x: mx.array, name: str) -> mx.array:
    """Return what GELU takes of x: the normal distribution, or tanh's likeness of it."""
    if name == "gelu":
        return (1 + mx.erf(x / sqrt(2))) / 2
    scale, cubic = CUBIC
    return (1 + mx.tanh((x * x * cubic + 1) * x * scale)) / 2


def rotate(
    x: mx.array, frequencies: mx.array, rotary: Rotary, positions: mx.array | int
) -> mx.array:
    """Return x (B, heads, S, h) with its leading channels rotated by position, or its last ones.

    ``frequencies`` (d/2,) are angles per position; channel i pairs with i + d/2, or 2i with
    2i + 1 if they are interleaved. ``positions``
    is that of the first token, or (B, S) where rows hold several documents; the frequencies can
    be (B, 1, S, d/2) then.
    """
    size, factor = rotary.dimensions, rotary.attention_factor
    if rotary.trailing and size < x.shape[-1]:
        first = x.shape[-1] - size
        turned = rotate(x[..., first:], frequencies, rotary, positions)
        return mx.concatenate([x[..., :first], turned], axis=-1)
    if not isinstance(positions, int):
        at = positions[:, None, :, None]
        return _rotated(x, at * frequencies, rotary, _factor(rotary, at))
    if factor != 1.0:
        x = mx.concatenate([x[..., :size] * factor, x[..., size:]], axis=-1)
    rotated = partial(
        mx.fast.rope,
        dims=size, traditional=rotary.interleaved, base=None, scale=1.0, offset=positions,
        freqs=1 / frequencies,
    )  # fmt: skip
    return recomputed(rotated)(x)


def _factor(rotary: Rotary, at: mx.array) -> mx.array | float:
    """Return what tokens are multiplied by beside their rotation, (B, 1, S, 1) if they differ."""
    factor = rotary.attention_factor
    if not rotary.growth:
        return factor
    times = (at // rotary.original_context).astype(mx.float32)
    return factor * (1 + rotary.growth * mx.log1p(times))


def _rotated(x: mx.array, angles: mx.array, rotary: Rotary, factor: mx.array | float) -> mx.array:
    """Return x rotated by angles (B, 1, S, d/2) and multiplied by a factor."""
    size = rotary.dimensions
    cos, sin = (part.astype(x.dtype) for part in (mx.cos(angles) * factor, mx.sin(angles) * factor))
    if rotary.interleaved:
        first, second = x[..., :size:2], x[..., 1:size:2]
        pairs = mx.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return mx.concatenate([pairs.flatten(-2), x[..., size:]], axis=-1)
    first, second = x[..., : size // 2], x[..., size // 2 : size]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return mx.concatenate([*rotated, x[..., size:]], axis=-1)


def _plain_norm(x: mx.array, *, kind: NormKind) -> mx.array:
    if kind.kind == "rms":
        return mx.fast.rms_norm(x, None, kind.eps)
    return mx.fast.layer_norm(x, None, None, kind.eps)


def _norm(
    x: mx.array, weight: mx.array, bias: mx.array | None = None, *, kind: NormKind
) -> mx.array:
    if kind.kind == "rms":
        return mx.fast.rms_norm(x, weight, kind.eps).astype(x.dtype)
    return mx.fast.layer_norm(x, weight, bias, kind.eps).astype(x.dtype)


def _grouped_norm(x: mx.array, weight: mx.array, *, kind: NormKind) -> mx.array:
    grouped = x.astype(mx.float32).reshape(*x.shape[:-1], kind.groups, -1)
    unit = mx.fast.rms_norm(grouped, None, kind.eps).reshape(x.shape)
    return (unit * weight.astype(mx.float32)).astype(x.dtype)
