"""Products with frozen matrices, written so that nothing is saved that can be had again.

T tokens, K inputs, N outputs, R rank. The dense form of a quantized matrix lives for one
product; the input of a projection is saved by reference, so that projections which read the
same tensor share it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgetune_torch.matrices import Matrix


class FrozenLinear(torch.autograd.Function):
    """``y = x W^T + bias``; saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
        """Multiply x (..., K) to (..., N)."""
        ctx.matrix = matrix
        return _product(x, matrix, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        """Return the gradient of x."""
        (grad,) = grads
        return grad @ ctx.matrix.dense(grad.dtype), None, None


class LoraLinear(torch.autograd.Function):
    """``y = x W^T + bias + scale * dropout(x) A^T B^T`` with float32 A and B.

    Saves x (shared, by reference), ``dropout(x) A^T`` (T, R) and the seed of the dropout.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        matrix: Matrix,
        bias: Tensor | None,
        scale: float,
        dropout: Dropout | None,
    ) -> Tensor:
        """Multiply x (..., K) to (..., N)."""
        low = (x if dropout is None else dropout.apply(x)) @ a.to(x.dtype).T  # (..., R)
        y = _product(x, matrix, bias)
        y.view(-1, y.shape[-1]).addmm_(low.reshape(-1, low.shape[-1]), b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, a, b, low)
        ctx.matrix, ctx.scale, ctx.dropout = matrix, scale, dropout
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of x, A and B."""
        x, a, b, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, b.shape[0])  # (T, N)
        low_grad = (grad @ b.to(grad.dtype)).mul_(ctx.scale)  # (T, R)
        b_grad = (grad.T @ low.reshape(-1, a.shape[0])).mul_(ctx.scale)
        dropped = x if ctx.dropout is None else ctx.dropout.apply(x)
        a_grad = low_grad.T @ dropped.reshape(-1, a.shape[1])
        x_grad = None
        if ctx.needs_input_grad[0]:
            through = low_grad @ a.to(grad.dtype)  # (T, K)
            if ctx.dropout is not None:
                through = ctx.dropout.apply(through.view(x.shape)).view(through.shape)
            x_grad = through.addmm_(grad, ctx.matrix.dense(grad.dtype)).view(x.shape)
        return x_grad, a_grad.to(a.dtype), b_grad.to(b.dtype), None, None, None, None


class Dropout:
    """Inverted dropout whose mask is drawn again from its seed instead of being kept."""

    def __init__(self, share: float, seed: int) -> None:
        """Drop ``share`` of the elements, those that ``seed`` says."""
        self.share = share
        self.seed = seed

    def apply(self, x: Tensor) -> Tensor:
        """Return x with the dropped elements zero and the others scaled up."""
        generator = torch.Generator(x.device).manual_seed(self.seed)
        kept = torch.empty_like(x).bernoulli_(1 - self.share, generator=generator)
        return kept.mul_(x).div_(1 - self.share)


def frozen_linear(x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
    """Return ``x W^T + bias`` for a frozen W."""
    y: Tensor = FrozenLinear.apply(x, matrix, bias)  # type: ignore[no-untyped-call]
    return y


def lora_linear(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    matrix: Matrix,
    bias: Tensor | None,
    scale: float,
    dropout: Dropout | None = None,
) -> Tensor:
    """Return ``x W^T + bias + scale * dropout(x) A^T B^T`` for a frozen W."""
    y: Tensor = LoraLinear.apply(  # type: ignore[no-untyped-call]
        x, a, b, matrix, bias, scale, dropout
    )
    return y


def _product(x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
    y = x @ matrix.dense(x.dtype).T
    return y if bias is None else y.add_(bias)
