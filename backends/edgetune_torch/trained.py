"""Trained copies of the base's own tensors: biases, norms, whole matrices.

T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgetune.shape import ModelShape, NormKind
from edgetune_torch.adaptation import Adapted
from edgetune_torch.pointwise import norm


class AddBias(torch.autograd.Function):
    """``y + bias``; the gradient of the bias is summed in float32."""

    @staticmethod
    def forward(_: Any, y: Tensor, bias: Tensor) -> Tensor:
        """Add bias (N) to y (..., N)."""
        return y + bias.to(y.dtype)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of y and of the bias."""
        (grad,) = grads
        return grad, grad.flatten(0, -2).sum(0, dtype=torch.float32)


class TrainedLinear(torch.autograd.Function):
    """``y = x W^T`` with a float32 W (N, K); saves x and no converted copy of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply x (..., K) to (..., N)."""
        ctx.save_for_backward(x, weight)
        return x @ weight.to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the gradients of x and W."""
        x, weight = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)  # (T, N)
        weight_grad = (grad.T @ x.flatten(0, -2)).float()
        if not ctx.needs_input_grad[0]:
            return None, weight_grad
        return (grad @ weight.to(grad.dtype)).view(x.shape), weight_grad


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """Return ``y + bias`` for a trained bias (N)."""
    out: Tensor = AddBias.apply(y, bias)  # type: ignore[no-untyped-call]
    return out


def trained_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x W^T`` for a trained W (N, K)."""
    out: Tensor = TrainedLinear.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class TrainedNorms:
    """The norms of a model, some of whose weights and biases are trained.

    ``part`` is what stands between a norm's module and ``.weight`` or ``.bias`` in the names
    of the trained copies.
    """

    def __init__(self, method: Adapted, part: str = "") -> None:
        """Find the copies among a method's tensors."""
        self._modules = _norm_modules(method.shape)
        self._parameters = method.parameters
        self._part = part

    def __call__(
        self,
        layer: int | None,
        role: str,
        x: Tensor,
        kind: NormKind,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Return x normalised, with what is trained in place of what is frozen."""
        name = f"{self._modules[layer, role]}{self._part}"
        weight = self._parameters.get(f"{name}.weight", weight)
        return norm(x, kind, weight, self._parameters.get(f"{name}.bias", bias))


def _norm_modules(shape: ModelShape) -> dict[tuple[int | None, str], str]:
    modules: dict[tuple[int | None, str], str] = {
        (layer, item.role): f"{shape.block(layer)}{item.module}"
        for layer in range(shape.layers)
        for item in shape.norms
    }
    return modules | {(None, "final"): shape.final_norm.module}
