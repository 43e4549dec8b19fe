"""Cross entropy on a card, over whole rows of logits, which become their gradient in place.

C rows, V vocabulary.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgetune_torch import kernels

NUMBERS = 4096
"""Logits that a program has at once; it goes through a row twice for a gradient."""


@triton.jit
def _finished(z, bias, at, known, scale, cap, biased: tl.constexpr, capped: tl.constexpr):
    """Return logits in float32 as the model has them, of what the product gave."""
    z = z.to(tl.float32)
    if biased:
        z = z + tl.load(bias + at, mask=known, other=0.0).to(tl.float32)
    z = z * scale
    if capped:
        z = cap * (2.0 * tl.sigmoid(2.0 * z / cap) - 1.0)
    return z


@triton.jit
def _cross_entropy(
    logits, targets, bias, factors, losses, hits, columns, scale, cap, biased: tl.constexpr,
    capped: tl.constexpr, graded: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    own = logits + row * columns
    target = tl.load(targets + row)
    high = tl.full((size,), float("-inf"), tl.float32)
    total = tl.zeros((size,), tl.float32)
    best = tl.zeros((size,), tl.int32)
    for start in range(0, columns, size):
        at = start + tl.arange(0, size)
        known = at < columns
        z = tl.load(own + at, mask=known, other=0.0)
        z = _finished(z, bias, at, known, scale, cap, biased, capped)
        z = tl.where(known, z, float("-inf"))
        higher = tl.maximum(high, z)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(high - shift) + tl.exp(z - shift)
        best = tl.where(z > high, at, best)
        high = higher
    top = tl.max(high, axis=0)
    log_total = top + tl.log(tl.sum(total * tl.exp(high - top), axis=0))
    found = tl.min(tl.where(high == top, best, columns), axis=0)
    wanted = tl.load(own + target)
    wanted = _finished(wanted, bias, target, target >= 0, scale, cap, biased, capped)
    tl.store(losses + row, log_total - wanted)
    tl.store(hits + row, (found == target).to(tl.int8))
    if graded:
        factor = tl.load(factors + row)
        for start in range(0, columns, size):
            at = start + tl.arange(0, size)
            known = at < columns
            z = tl.load(own + at, mask=known, other=0.0)
            z = _finished(z, bias, at, known, scale, cap, biased, capped)
            grad = (tl.exp(z - log_total) - tl.where(at == target, 1.0, 0.0)) * factor
            if capped:
                grad = grad * (1.0 - (z / cap) * (z / cap))
            tl.store(own + at, (grad * scale).to(logits.dtype.element_ty), mask=known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What a model does with the numbers of its last product: bias (V,), factor, cap."""

    bias: Tensor | None
    scale: float
    softcap: float | None


def cross_entropy(
    logits: Tensor, targets: Tensor, finish: Finish, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss of every row (C,) in float32, and whether its target was the likeliest (C,).

    ``logits`` (C, V) lie next to each other, as a product gave them. With ``factors`` (C,) they become
    the gradient of the sum of losses times factors, by what the product gave.
    """
    rows, columns = logits.shape
    losses = torch.empty(rows, device=logits.device)
    hits = torch.empty(rows, dtype=torch.int8, device=logits.device)
    kernels.launch(
        _cross_entropy, (rows,), logits, targets, losses if finish.bias is None else finish.bias,
        losses if factors is None else factors, losses, hits, columns, finish.scale,
        finish.softcap or 1.0, biased=finish.bias is not None, capped=finish.softcap is not None,
        graded=factors is not None, size=min(NUMBERS, kernels.power_of_2(columns)), num_warps=8,
    )  # fmt: skip
    return losses, hits
