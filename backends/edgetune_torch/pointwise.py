"""Norms, rotation and activations: element by element, with their backward written out.

Each saves its inputs only (they are needed elsewhere anyway) and recomputes the rest. A weight
gets a gradient only if it is trained. A processor computes them a piece at a time. Where they serve,
:mod:`edgetune_torch.kernels` (on cards) and :mod:`edgetune_torch.cpu_kernels` do the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune.pieces import pieces
from edgetune.shape import NormKind
from edgetune_torch import kernels
from edgetune_torch.cpu_kernels import pointwise as kernel


class RmsNorm(torch.autograd.Function):
    """``x / rms(x) * weight``, computed in float32 whatever x's type, a piece at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """Normalise x over its last axis; ``weight`` is float32, None where there is none.

        It may have another axis before that, for groups which are normalised on their own.
        """
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        if (found := kernel.normed(x, weight, eps)) is not None:
            return found
        out = torch.empty_like(x)
        for at in _pieces(x):
            _normed(x[at], weight, eps, out[at])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Return the gradient of x, and of a trained weight."""
        x, weight = ctx.saved_tensors
        (grad,) = grads
        trained = ctx.needs_input_grad[1]
        found = None if trained else kernel.normed_back(x, weight, ctx.eps, grad)
        if found is not None:
            return found, None, None
        weight_grad = torch.zeros_like(weight) if trained else None
        out = torch.empty_like(grad)
        for at in _pieces(x):
            _normed_back(x[at], weight, ctx.eps, grad[at], out[at], weight_grad)
        return out, weight_grad, None


def _normed(x: Tensor, weight: Tensor | None, eps: float, out: Tensor) -> None:
    """Put a piece of x, normalised, into ``out``."""
    wide = x.float()
    unit = wide * _inverse_rms(wide, eps)
    out.copy_(unit if weight is None else unit.mul_(weight))


def _normed_back(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    grad: Tensor,
    out: Tensor,
    weight_grad: Tensor | None,
) -> None:
    """Put a piece of the gradient of x into ``out``, and add to that of the weight."""
    unit, inverse = _unit(x, eps)
    wide = grad.float()
    if weight_grad is not None:
        weight_grad += (wide * unit).sum(tuple(range(wide.dim() - weight_grad.dim())))
    if weight is not None:
        wide = wide * weight
    elif wide is grad:
        wide = grad.clone()
    wide -= unit.mul_((wide * unit).mean(-1, keepdim=True))
    out.copy_(wide.mul_(inverse))


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x normalised, in float32, and what it was multiplied by (..., 1)."""
    wide = x.float()
    inverse = _inverse_rms(wide, eps)
    return wide * inverse, inverse


def _pieces(x: Tensor) -> Iterator[tuple[slice, ...]]:
    """Yield the pieces in which a processor computes; a card does it at once."""
    return pieces(x.shape) if x.device.type == "cpu" else iter(((),))


def norm(x: Tensor, kind: NormKind, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return x normalised over its last axis, or groups of it, as the model's norms do."""
    if kind.kind == "rms" and kind.groups == 1 and kernels.served(x.device):
        from edgetune_torch.kernels.norm import rms_norm

        return rms_norm(x, weight, kind.offset, kind.eps)
    wide = None if weight is None else weight.float()
    if wide is not None and kind.offset:
        wide = wide + kind.offset
    if kind.kind == "rms":
        return _rms_norm(x, wide, kind)
    wide_bias = None if bias is None else bias.float()
    return F.layer_norm(x.float(), x.shape[-1:], wide, wide_bias, kind.eps).to(x.dtype)


def _rms_norm(x: Tensor, weight: Tensor | None, kind: NormKind) -> Tensor:
    if kind.groups > 1:
        x = x.view(*x.shape[:-1], kind.groups, -1)
        weight = None if weight is None else weight.view(kind.groups, -1)
    y: Tensor = RmsNorm.apply(x, weight, kind.eps)  # type: ignore[no-untyped-call]
    return y.flatten(-2) if kind.groups > 1 else y


class SquaredRelu(torch.autograd.Function):
    """``relu(x)^2``; saves its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the activation of x."""
        ctx.save_for_backward(x)
        return F.relu(x).square_()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient of x."""
        (x,) = ctx.saved_tensors
        return F.relu(x).mul_(2).mul_(grads[0])


class GatedActivation(torch.autograd.Function):
    """``activation(gate) * up``; saves both inputs, not the activation."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, name: str) -> Tensor:
        """Combine gate and up (..., F)."""
        ctx.save_for_backward(gate, up)
        ctx.name = name
        if (found := kernel.gated(gate, up, name)) is not None:
            return found
        out = torch.empty_like(up)
        for at in _pieces(up):
            torch.mul(activation(gate[at], name), up[at], out=out[at])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of gate and up."""
        gate, up = ctx.saved_tensors
        if (found := kernel.gated_back(gate, up, ctx.name, grads[0])) is not None:
            return *found, None
        gate_grad, up_grad = torch.empty_like(gate), torch.empty_like(up)
        for at in _pieces(up):
            _gated_back(gate[at], up[at], ctx.name, grads[0][at], (gate_grad[at], up_grad[at]))
        return gate_grad, up_grad, None


def _gated_back(
    gate: Tensor, up: Tensor, name: str, grad: Tensor, out: tuple[Tensor, Tensor]
) -> None:
    """Put a piece of the gradients of gate and up into ``out``."""
    _activated_back(gate, grad * up, name, out[0])
    torch.mul(grad, activation(gate, name), out=out[1])


def _activated_back(x: Tensor, grad: Tensor, name: str, out: Tensor) -> None:
    """Put the gradient of x for that of its activation into ``out``."""
    aten = torch.ops.aten
    match name:
        case "silu":
            aten.silu_backward.grad_input(grad, x, grad_input=out)
        case "gelu" | "gelu_tanh":
            how = "tanh" if name == "gelu_tanh" else "none"
            aten.gelu_backward.grad_input(grad, x, approximate=how, grad_input=out)
        case "relu":
            aten.threshold_backward.grad_input(grad, x, 0, grad_input=out)
        case "sigmoid":
            aten.sigmoid_backward.grad_input(grad, torch.sigmoid(x), grad_input=out)
        case "relu2":
            torch.mul(F.relu(x).mul_(2), grad, out=out)
        case other:
            raise ValueError(f"no gate is an activation {other!r}")


def gated_activation(gate: Tensor, up: Tensor, name: str) -> Tensor:
    """Return ``activation(gate) * up``."""
    if kernels.served(gate.device):
        from edgetune_torch.kernels import gated

        if name in gated.NAMES:
            return gated.gated_activation(gate, up, name)
    y: Tensor = GatedActivation.apply(gate, up, name)  # type: ignore[no-untyped-call]
    return y


def activation(x: Tensor, name: str) -> Tensor:
    """Return the named activation of x."""
    match name:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu":
            return F.relu(x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "relu2":
            y: Tensor = SquaredRelu.apply(x)  # type: ignore[no-untyped-call]
            return y
        case other:
            raise ValueError(f"the model's shape should have refused the activation {other!r}")


class Rotation(torch.autograd.Function):
    """All channels rotated, channel i with i + h/2; saves the tables alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate x (B, heads, S, h)."""
        ctx.save_for_backward(cos, sin)
        if (found := kernel.rotated(x, cos, sin, back=False)) is not None:
            return found
        out = torch.empty_like(x)
        for at in _positions(x):
            part = torch.mul(x[at], _tables(cos, at), out=out[at])
            part += _turned(x[at], interleaved=False).mul_(_tables(sin, at))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Rotate the gradient of x back."""
        (grad,), (cos, sin) = grads, ctx.saved_tensors
        if (found := kernel.rotated(grad, cos, sin, back=True)) is not None:
            return found, None, None
        out = torch.empty_like(grad)
        for at in _positions(grad):
            _rotated_back(grad[at], _tables(cos, at), _tables(sin, at), out[at])
        return out, None, None


def _rotated_back(grad: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Put a piece of a gradient, rotated back, into ``out``."""
    first, second = torch.mul(grad, cos, out=out).chunk(2, dim=-1)
    one, other = (grad * sin).chunk(2, dim=-1)
    first += other
    second -= one


def _positions(x: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield the pieces of x (B, heads, S, h): rows, all heads, some positions of them."""
    rows, heads, positions, size = x.shape
    for at in pieces((rows, positions, heads * size)):
        own = at[1] if len(at) > 1 else slice(None)
        yield at[0], slice(None), own


def _tables(table: Tensor, at: tuple[slice, slice, slice]) -> Tensor:
    """Return cosines or sines (B or 1, 1, S, h) of a piece."""
    return table[at[0] if len(table) > 1 else slice(None), :, at[2]]


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool, trailing: bool = False
) -> Tensor:
    """Return x (B, heads, S, h) with its leading channels rotated by position, or its last ones.

    ``cos`` and ``sin`` are (B, 1, S, d), d <= h; channel i pairs with i + d/2, or 2i with 2i + 1
    if ``interleaved``.
    """
    if kernels.served(x.device):
        from edgetune_torch.kernels import rotary

        return rotary.rotate(x, cos, sin, interleaved=interleaved, trailing=trailing)
    size = cos.shape[-1]
    if x.device.type == "cpu" and size == x.shape[-1] and not interleaved:
        y: Tensor = Rotation.apply(x, cos, sin)  # type: ignore[no-untyped-call]
        return y
    first = x.shape[-1] - size if trailing else size
    parts = x[..., :first], x[..., first:]
    part, pass_through = parts[::-1] if trailing else parts
    rotated = part * cos + _turned(part, interleaved=interleaved) * sin
    if not pass_through.shape[-1]:
        return rotated
    whole = (pass_through, rotated) if trailing else (rotated, pass_through)
    return torch.cat(whole, dim=-1)


def _turned(x: Tensor, *, interleaved: bool) -> Tensor:
    """Return each pair of channels turned by a right angle."""
    if interleaved:
        first, second = x.view(*x.shape[:-1], -1, 2).unbind(-1)
        return torch.stack((-second, first), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
