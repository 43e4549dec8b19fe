"""Depthwise causal convolutions over a few tokens, and the mixer that LFM2 makes of one.

Sums are in float32 and rounded once. Each document is convolved on its own: what stands before
its first token counts as zero. B rows, S positions, D channels, K taps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from edgetune_torch.documents import Documents

Span = tuple[slice, int, int]
"""Some rows, and the first and the last position of a document in them."""


class ShortConvolution(torch.autograd.Function):
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


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, documents: Documents
) -> Tensor:
    """Return ``c * convolution(b * u)`` (B, S, D) of x (B, S, 3 D)."""
    y: Tensor = ShortConvolution.apply(x, weight, bias, documents)  # type: ignore[no-untyped-call]
    return y


def short_convolution_after(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the same of the next tokens of one document, and what its next ones need.

    ``before`` (1, K - 1, D) is what this returned for the tokens before; None at the beginning.
    """
    b, c, u = x.chunk(3, -1)
    y, after = convolved_after(product(b, u), taps_of(weight), bias, before)
    return y.mul_(c).to(x.dtype), after


def convolved(x: Tensor, taps: Tensor, bias: Tensor | None, documents: Documents) -> Tensor:
    """Return the convolution (B, S, D) of x with taps (K, D), the last of which is a token's own."""
    y = x * taps[-1]
    if bias is not None:
        y += bias
    for back in range(1, len(taps)):
        for rows, start, stop in _spans(documents, x.shape[1]):
            if stop - start > back:
                y[rows, start + back : stop].addcmul_(x[rows, start : stop - back], taps[-1 - back])
    return y


def convolved_after(
    x: Tensor, taps: Tensor, bias: Tensor | None, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the convolution of the next tokens of one document, and the last inputs (1, K - 1, D)."""
    kept = len(taps) - 1
    if before is None:
        before = x.new_zeros(1, kept, x.shape[2])
    whole = torch.cat((before, x), 1)
    y = convolved(whole, taps, bias, ((whole.shape[1],),))
    return y[:, kept:], whole[:, whole.shape[1] - kept :].clone()


def convolved_back(grad: Tensor, taps: Tensor, documents: Documents) -> Tensor:
    """Return the gradient (B, S, D) of a convolution's input for that of its output."""
    y = grad * taps[-1]
    for back in range(1, len(taps)):
        for rows, start, stop in _spans(documents, grad.shape[1]):
            if stop - start > back:
                later = grad[rows, start + back : stop]
                y[rows, start : stop - back].addcmul_(later, taps[-1 - back])
    return y


def convolved_weight(x: Tensor, grad: Tensor, weight: Tensor, documents: Documents) -> Tensor:
    """Return the gradient (D, 1, K) of a convolution's weight, for its input and its output's."""
    taps = torch.zeros_like(weight[:, 0].T)  # (K, D)
    taps[-1] = (grad * x).sum((0, 1))
    for back in range(1, len(taps)):
        for rows, start, stop in _spans(documents, x.shape[1]):
            if stop - start > back:
                both = grad[rows, start + back : stop] * x[rows, start : stop - back]
                taps[-1 - back] += both.sum((0, 1))
    return taps.T[:, None].contiguous()


def product(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x * y`` in float32, or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x * y if x.dtype == wide else x.to(wide).mul_(y)


def taps_of(weight: Tensor) -> Tensor:
    """Return a weight (D, 1, K) as taps (K, D) in float32, or wider."""
    return weight[:, 0].T.to(torch.promote_types(weight.dtype, torch.float32))


def _spans(documents: Documents, positions: int) -> Iterator[Span]:
    """Yield where the documents are; rows of one document each go together, padding and all."""
    if all(len(row) <= 1 for row in documents):
        yield slice(None), 0, positions
        return
    for number, lengths in enumerate(documents):
        start = 0
        for length in lengths:
            yield slice(number, number + 1), start, start + length
            start += length
