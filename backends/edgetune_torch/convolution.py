"""Depthwise causal convolutions over a few tokens.

Sums are in float32. Each document is convolved on its own: what stands before
its first token counts as zero. B rows, S positions, D channels, K taps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from edgetune_torch.documents import Documents

Span = tuple[slice, int, int]
"""Some rows, and the first and the last position of a document in them."""


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
