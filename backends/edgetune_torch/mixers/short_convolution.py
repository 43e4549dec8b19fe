"""Short convolutions, LFM2's mixer: a convolution between two gates.

Sums are in float32 and rounded once; nothing but the inputs is saved. B rows, S positions, D
channels, K taps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgetune.network.mixers.short_convolution import ShortConvolution
from edgetune_torch.convolution import (
    convolved,
    convolved_after,
    convolved_back,
    convolved_weight,
    product,
    taps_of,
)
from edgetune_torch.documents import Documents


class Gated(torch.autograd.Function):
    """``c * convolution(b * u)``; saves its input, which is b, c and u side by side."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, documents: Documents
    ) -> Tensor:
        """Convolve x (B, S, 3 D) with weight (D, 1, K)."""
        ctx.save_for_backward(x, weight, bias)
        ctx.documents = documents
        b, c, u = x.chunk(3, -1)
        y = convolved(product(b, u), taps_of(weight), bias, documents)
        return y.mul_(c).to(x.dtype)

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Return the gradients of x, and of trained tensors."""
        x, weight, bias = ctx.saved_tensors
        x_wanted, weight_wanted, bias_wanted, _ = ctx.needs_input_grad
        (grad,), documents, taps = grads, ctx.documents, taps_of(weight)
        b, c, u = x.chunk(3, -1)
        x_grad = torch.empty_like(x) if x_wanted else None
        between = product(b, u)
        if x_grad is not None:
            x_grad.chunk(3, -1)[1].copy_(convolved(between, taps, bias, documents).mul_(grad))
        grad = product(c, grad)
        weight_grad = convolved_weight(between, grad, weight, documents) if weight_wanted else None
        bias_grad = grad.sum((0, 1)) if bias_wanted else None
        del between
        if x_grad is not None:
            back = convolved_back(grad, taps, documents)
            del grad
            x_grad.chunk(3, -1)[0].copy_(back * u)
            x_grad.chunk(3, -1)[2].copy_(back.mul_(b))
        return x_grad, weight_grad, bias_grad, None


def mixed(
    mixer: ShortConvolution,  # noqa: ARG001
    inputs: Sequence[Tensor],
    own: Mapping[str, Tensor],
    documents: Documents,
) -> Tensor:
    """Return ``c * convolution(b * u)`` (B, S, D) of x (B, S, 3 D)."""
    (x,) = inputs
    y: Tensor = Gated.apply(  # type: ignore[no-untyped-call]
        x, own["conv"], own.get("conv_bias"), documents
    )
    return y


def mixed_after(
    mixer: ShortConvolution,  # noqa: ARG001
    inputs: Sequence[Tensor],
    own: Mapping[str, Tensor],
    before: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the same of the next tokens of one document, and what its next ones need.

    ``before`` (1, K - 1, D) is what this returned for the tokens before; None at the beginning.
    """
    (x,) = inputs
    b, c, u = x.chunk(3, -1)
    y, after = convolved_after(product(b, u), taps_of(own["conv"]), own.get("conv_bias"), before)
    return y.mul_(c).to(x.dtype), after
