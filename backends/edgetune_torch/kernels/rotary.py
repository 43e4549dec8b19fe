"""The rotation of queries and keys on a card, forward and back.

B rows, S positions, H heads, h channels of a head, d of them rotated.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgetune_torch import kernels

NUMBERS = 2048
"""Pairs of channels that a program turns at once, if a head has not more."""


@triton.jit
def _turn(
    y, x, cos, sin, y_row, y_head, y_at, x_row, x_head, x_at, table_row, table_at, positions, heads,
    channels, turned, sign, interleaved: tl.constexpr, trailing: tl.constexpr, height: tl.constexpr,
    pairs: tl.constexpr, rest: tl.constexpr,
):  # fmt: skip
    row, at = tl.program_id(0) // positions, tl.program_id(0) % positions
    row, at = row.to(tl.int64), at.to(tl.int64)
    head = tl.program_id(1) * height + tl.arange(0, height)
    here = (head < heads)[:, None]
    half = turned // 2
    pair = tl.arange(0, pairs)
    first = pair * 2 if interleaved else pair
    second = pair * 2 + 1 if interleaved else pair + half
    known = pair < half
    table = row * table_row + at * table_at + first
    c = tl.load(cos + table, mask=known, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + table, mask=known, other=0.0).to(tl.float32)[None, :] * sign
    source = x + row * x_row + at * x_at + head[:, None] * x_head
    target = y + row * y_row + at * y_at + head[:, None] * y_head
    inside = here & known[None, :]
    if trailing:
        first += channels - turned
        second += channels - turned
    a = tl.load(source + first[None, :], mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + second[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(target + first[None, :], (a * c - b * s).to(y.dtype.element_ty), mask=inside)
    tl.store(target + second[None, :], (b * c + a * s).to(y.dtype.element_ty), mask=inside)
    if rest > 0:
        column = tl.arange(0, rest)
        inside = here & (column < channels - turned)[None, :]
        column += 0 if trailing else turned
        passed = tl.load(source + column[None, :], mask=inside, other=0.0)
        tl.store(target + column[None, :], passed, mask=inside)


class CardRotation(torch.autograd.Function):
    """The rotation of :func:`edgetune_torch.pointwise.rotate`; saves the tables alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, trailing: bool
    ) -> Tensor:
        """Rotate x (B, H, S, h) by cos and sin (B, 1, S, d)."""
        ctx.save_for_backward(cos, sin)
        ctx.which = interleaved, trailing
        return _turned(x, cos, sin, 1.0, interleaved, trailing)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of x: rotated back."""
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, -1.0, *ctx.which), None, None, None, None


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool, trailing: bool = False
) -> Tensor:
    """Return x (B, H, S, h) whose first or last d channels are rotated by cos and sin (B, 1, S, d)."""
    y: Tensor = CardRotation.apply(x, cos, sin, interleaved, trailing)
    return y


def _turned(
    x: Tensor, cos: Tensor, sin: Tensor, sign: float, interleaved: bool, trailing: bool
) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty_like(x)
    rows, heads, positions, channels = x.shape
    turned = cos.shape[-1]
    pairs = kernels.power_of_2(turned // 2)
    height = max(1, min(kernels.power_of_2(heads), NUMBERS // pairs))
    rest = kernels.power_of_2(channels - turned) if channels > turned else 0
    strides = (*(y.stride(i) for i in range(3)), *(x.stride(i) for i in range(3)))
    table_row = cos.stride(0) if len(cos) > 1 else 0
    kernels.launch(
        _turn, (rows * positions, -(-heads // height)), y, x, cos, sin, *strides, table_row,
        cos.stride(2), positions, heads, channels, turned, sign, interleaved=interleaved,
        trailing=trailing, height=height, pairs=pairs, rest=rest,
    )  # fmt: skip
    return y
