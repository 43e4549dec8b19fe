"""xIELU, the activation of Apertus (Huang & Schlag 2024): squares above zero, less than linear below.

    x > 0:   alpha_p x^2 + beta x
    x <= 0:  alpha_n (e^min(x, eps) - 1 - x) + beta x

Computed in float32, some rows at a time, and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune_torch.linear import ROWS


class Xielu(torch.autograd.Function):
    """The activation by four numbers, which get no gradient; saves its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor
    ) -> Tensor:
        """Return the activation of x (..., F); the numbers are float32."""
        ctx.save_for_backward(x, alpha_p, alpha_n, beta, eps)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, result in zip(_pieces(x), _pieces(out), strict=True):
            wide = part.float()
            below = torch.minimum(wide, eps).expm1_().sub_(wide).mul_(alpha_n)
            above = (wide * alpha_p).mul_(wide)
            torch.where(wide > 0, above, below, out=below)
            result.copy_(below.addcmul_(wide, beta))
            del wide, above, below
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of x."""
        x, alpha_p, alpha_n, beta, eps = ctx.saved_tensors
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, grad, result in zip(_pieces(x), _pieces(grads[0]), _pieces(out), strict=True):
            wide = part.float()
            below = torch.where(wide < eps, wide.expm1(), -1.0).mul_(alpha_n)
            above = (wide * alpha_p).mul_(2)
            torch.where(wide > 0, above, below, out=below)
            result.copy_(below.add_(beta).mul_(grad))
            del wide, above, below
        return out, None, None, None, None


def xielu(x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    """Return the activation of x by a block's numbers as they are stored: alphas before softplus."""
    beta = stored["beta"].float()
    alpha_n = F.softplus(stored["alpha_n"].float()) + beta
    alpha_p = F.softplus(stored["alpha_p"].float())
    y: Tensor = Xielu.apply(x, alpha_p, alpha_n, beta, stored["eps"].float())  # type: ignore[no-untyped-call]
    return y


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """Return x by some rows (rows, F) at a time."""
    return torch.split(x.reshape(-1, x.shape[-1]), ROWS)
