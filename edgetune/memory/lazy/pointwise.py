"""Norms, rotations and activations as the MLX engine writes them; each keeps its inputs only."""

from __future__ import annotations

from functools import partial

from edgetune.memory.lazy.arrays import counted, mean
from edgetune.memory.lazy.elementwise import (
    add,
    cast,
    compared,
    exp,
    mapped,
    minus_from,
    multiply,
    plus,
    rsqrt,
    sigmoid,
    square,
    subtract,
    times,
    where,
)
from edgetune.memory.lazy.gradients import custom, recomputed
from edgetune.memory.lazy.graph import Array, Grads, Wanted
from edgetune.memory.lazy.views import concatenate, cut, depends, expand, flatten, reshape
from edgetune.shape import Clamp, NormKind, Rotary
from edgetune.storage import FLOAT32_BYTES


def norm(x: Array, kind: NormKind, weight: Array | None, bias: Array | None) -> Array:
    """Return x normalised over its last axis."""
    if weight is None:
        return recomputed(_plain_norm, x)
    wide = plus(cast(weight, FLOAT32_BYTES)) if kind.offset else weight
    inputs = (x, wide) if bias is None else (x, wide, bias)
    if kind.groups > 1:
        return recomputed(partial(_grouped_norm, groups=kind.groups), *inputs)
    return recomputed(_rms_norm if kind.kind == "rms" else _layer_norm, *inputs)


def _plain_norm(x: Array) -> Array:
    return cast(_unit(x), x.width)


def _rms_norm(x: Array, weight: Array) -> Array:
    kind = max(x.width, weight.width)
    weight = cast(weight, kind)
    return cast(multiply(cast(_unit(x), kind), weight), x.width)


def _grouped_norm(x: Array, weight: Array, *, groups: int) -> Array:
    size = x.shape[-1]
    wide = reshape(cast(x, FLOAT32_BYTES), (*x.shape[:-1], groups, size // groups))
    unit = reshape(_unit(wide), x.shape)
    return cast(multiply(unit, cast(weight, FLOAT32_BYTES)), x.width)


def _unit(x: Array) -> Array:
    """Return x in float32, divided by the root of its mean square."""
    wide = cast(x, FLOAT32_BYTES)
    return multiply(wide, rsqrt(plus(mean(square(wide)))))


def _layer_norm(x: Array, weight: Array, bias: Array | None = None) -> Array:
    kind = max(x.width, weight.width, 0 if bias is None else bias.width)
    weight = cast(weight, kind)
    bias = None if bias is None else cast(bias, kind)
    wide = cast(x, FLOAT32_BYTES)
    centred = subtract(wide, mean(wide))
    wide = multiply(centred, rsqrt(plus(mean(square(centred)))))
    out = multiply(cast(wide, kind), weight)
    return cast(out if bias is None else add(out, bias), x.width)


def gated_activation(gate: Array, up: Array, name: str) -> Array:
    """Return ``activation(gate) * up``."""

    def back(primals: list[Array], grad: Array, _: Array, wanted: Wanted) -> Grads:
        gate, up = depends(primals, [grad])
        value, slope = _with_slope(gate, name)
        return [
            multiply(multiply(slope, up), grad) if wanted[0] else None,
            multiply(value, grad) if wanted[1] else None,
        ]

    return custom(lambda gate, up: multiply(activation(gate, name), up), back, gate, up)


def plain_activation(x: Array, name: str) -> Array:
    """Return ``activation(x)``."""

    def back(primals: list[Array], grad: Array, _: Array, __: Wanted) -> Grads:
        return [multiply(_with_slope(depends(primals, [grad])[0], name)[1], grad)]

    return custom(partial(activation, name=name), back, x)


def xielu(x: Array) -> Array:
    """Return xIELU of x, its numbers being of no size."""

    def back(primals: list[Array], grad: Array, _: Array, __: Wanted) -> Grads:
        (x,) = depends(primals, [grad])
        below = times(where(compared(x), mapped(x)))
        return [multiply(plus(where(compared(x), times(x), below)), grad)]

    return custom(_xielu, back, x)


def _xielu(x: Array) -> Array:
    below = times(subtract(mapped(times(x)), x))
    return add(where(compared(x), times(square(x)), below), times(x))


def activation(x: Array, name: str) -> Array:
    """Return the named activation of x."""
    match name:
        case "silu":
            return multiply(x, sigmoid(x))
        case "gelu" | "gelu_tanh":
            return multiply(x, _share(x, name))
        case "sigmoid":
            return sigmoid(x)
        case "relu2":
            return square(times(x))
        case _:
            return times(x)


def _with_slope(x: Array, name: str) -> tuple[Array, Array]:
    """Return the named activation of x and its derivative."""
    match name:
        case "relu":
            return times(x), cast(compared(x), x.width)
        case "relu2":
            positive = times(x)
            return square(positive), times(positive)
        case "sigmoid":
            value = sigmoid(x)
            return value, multiply(minus_from(value), value)
    share = sigmoid(x) if name == "silu" else _share(x, name)
    value = multiply(x, share)
    if name == "silu":
        return value, add(multiply(minus_from(share), value), share)
    if name == "gelu":
        density = times(exp(times(multiply(x, x))))
        return value, add(multiply(density, x), share)
    growth = times(plus(times(multiply(x, x))))
    return value, add(multiply(multiply(times(minus_from(share)), growth), value), share)


def _share(x: Array, name: str) -> Array:
    if name == "gelu":
        return times(plus(mapped(times(x))))
    inner = multiply(plus(times(multiply(x, x))), x)
    return times(plus(mapped(times(inner))))


def clamped(gate_up: Array, clamp: Clamp) -> Array:  # noqa: ARG001
    """Return what gpt-oss makes of gate and up, which alternate in the last axis."""

    def back(primals: list[Array], grad: Array, _: Array, __: Wanted) -> Grads:
        return [_clamped_back(depends(primals, [grad])[0], grad)]

    return custom(_clamped, back, gate_up)


def _clamped(gate_up: Array) -> Array:
    size = gate_up.shape[-1]
    gate = times(cut(gate_up, -1, 0, size, 2))
    up = times(times(cut(gate_up, -1, 1, size, 2)))
    return multiply(multiply(gate, sigmoid(times(gate))), plus(up))


def _clamped_back(gate_up: Array, grad: Array) -> Array:
    size = gate_up.shape[-1]
    gate, up = cut(gate_up, -1, 0, size, 2), cut(gate_up, -1, 1, size, 2)
    least = times(gate)
    share = sigmoid(times(least))
    slope = multiply(share, plus(multiply(times(least), minus_from(share))))
    factor = where(compared(gate), plus(times(times(up))))
    up_grad = where(compared(mapped(up)), multiply(multiply(least, share), grad))
    gate_grad = multiply(multiply(slope, factor), grad)
    both = concatenate([expand(gate_grad, 2), expand(up_grad, 2)], -1)
    return reshape(both, gate_up.shape)


def rotate(x: Array, rotary: Rotary, documents: int) -> Array:
    """Return x (B, heads, S, h) with some of its channels rotated by position."""
    size = rotary.dimensions
    if rotary.trailing and size < x.shape[-1]:
        first = x.shape[-1] - size
        turned = rotate(cut(x, -1, first, x.shape[-1]), rotary, documents)
        return concatenate([cut(x, -1, 0, first), turned], -1)
    if documents > 1 or rotary.growth:
        return _rotated(x, rotary, counted((x.shape[0], 1, x.shape[2], size // 2)))
    if rotary.attention_factor != 1.0:
        whole = x.shape[-1]
        x = concatenate([times(cut(x, -1, 0, size)), cut(x, -1, size, whole)], -1)
    return recomputed(partial(_rope, rotary=rotary), x)


def _rope(x: Array, *, rotary: Rotary) -> Array:
    return _rotated(x, rotary, counted((x.shape[2], rotary.dimensions // 2)))


def _rotated(x: Array, rotary: Rotary, angles: Array) -> Array:
    """Return x rotated by angles."""
    size, whole = rotary.dimensions, x.shape[-1]
    cos, sin = (cast(mapped(angles), x.width) for _ in range(2))
    if rotary.interleaved:
        first, second = cut(x, -1, 0, size, 2), cut(x, -1, 1, size, 2)
    else:
        first, second = cut(x, -1, 0, size // 2), cut(x, -1, size // 2, size)
    parts = [
        subtract(multiply(first, cos), multiply(second, sin)),
        add(multiply(first, sin), multiply(second, cos)),
    ]
    if rotary.interleaved:
        pairs = concatenate([expand(part, 4) for part in parts], -1)
        parts = [flatten(pairs, -2)] if len(pairs.shape) != 5 else [flatten(pairs, 3)]
    if size < whole:
        parts.append(cut(x, -1, size, whole))
    return concatenate(parts, -1)
