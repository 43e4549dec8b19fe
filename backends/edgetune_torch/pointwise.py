"""Norms, rotation and activations: element by element, with their backward written out.

Each saves its inputs only (they are needed elsewhere anyway) and recomputes the rest. A weight
gets a gradient only if it is trained. On cards that they serve, :mod:`edgetune_torch.kernels` does the
same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune.shape import NormKind
from edgetune_torch import kernels


class RmsNorm(torch.autograd.Function):
    """``x / rms(x) * weight``, computed in float32 whatever x's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """Normalise x over its last axis; ``weight`` is float32, None where there is none.

        It may have another axis before that, for groups which are normalised on their own.
        """
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        wide = x.float()
        unit = wide * _inverse_rms(wide, eps)
        return (unit if weight is None else unit.mul_(weight)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Return the gradient of x, and of a trained weight."""
        x, weight = ctx.saved_tensors
        wide = x.float()
        inverse = _inverse_rms(wide, ctx.eps)
        unit = wide * inverse
        grad = grads[0].float()
        trained = ctx.needs_input_grad[1]
        rows = tuple(range(grad.dim() - weight.dim())) if trained else ()
        weight_grad = (grad * unit).sum(rows) if trained else None
        grad = grad.clone() if weight is None else grad * weight
        grad -= unit * (grad * unit).mean(-1, keepdim=True)
        return grad.mul_(inverse).to(x.dtype), weight_grad, None


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
        return activation(gate, name).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of gate and up."""
        gate, up = ctx.saved_tensors
        (grad,) = grads
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            active = activation(leaf, ctx.name)
        (gate_grad,) = torch.autograd.grad(active, leaf, grad * up)
        return gate_grad, grad * active.detach(), None


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
