"""Fastfood projections of a trained vector (Le et al. 2013).

n size of the vector, a power of two; M blocks of n results; N outputs, K inputs of a matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def hadamard_(x: Tensor) -> Tensor:
    """Multiply the rows of x (..., n), whose numbers lie together, by the Walsh-Hadamard matrix."""
    half = 1
    while half < x.shape[-1]:
        pairs = x.view(-1, 2, half)
        first, second = pairs[:, 0], pairs[:, 1]
        difference = first - second
        first += second
        second.copy_(difference)
        del difference
        half *= 2
    return x


class Fastfood(torch.autograd.Function):
    """A projection that saves its inputs alone."""

    @staticmethod
    def forward(
        ctx: Any, vector: Tensor, signs: Tensor, order: Tensor, gaussian: Tensor, scale: Tensor,
        size: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        """Return the matrix (N, K)."""
        ctx.save_for_backward(vector, signs, order, gaussian, scale)
        results = hadamard_(gaussian * _mixed(vector, signs, order)).mul_(scale)
        return results.view(-1)[: size[0] * size[1]].view(size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the vector and the scale."""
        vector, signs, order, gaussian, scale = ctx.saved_tensors
        back = torch.zeros_like(gaussian)
        back.view(-1)[: grads[0].numel()] = grads[0].reshape(-1)
        mixed_grad = hadamard_(back).mul_(gaussian).sum(0)
        scale_grad = (mixed_grad * _mixed(vector, signs, order)).sum().view(1)
        vector_grad = torch.zeros_like(vector).index_add_(0, order.long(), mixed_grad)
        return hadamard_(vector_grad).mul_(signs).mul_(scale), None, None, None, scale_grad, None


def _mixed(vector: Tensor, signs: Tensor, order: Tensor) -> Tensor:
    """Return the vector (n) with its numbers mixed, in another order."""
    return hadamard_(vector * signs)[order.long()]


def fastfood(
    vector: Tensor, signs: Tensor, order: Tensor, gaussian: Tensor, scale: Tensor,
    size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Return the projection of a trained vector (n) as a matrix (N, K)."""
    out: Tensor = Fastfood.apply(vector, signs, order, gaussian, scale, size)  # type: ignore[no-untyped-call]
    return out
