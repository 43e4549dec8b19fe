"""RMSNorm on a card.

T rows, D numbers of a row. All arithmetic is in float32 whatever the rows are stored in.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgetune_torch import kernels

NUMBERS = 4096
"""Numbers that a program normalises at once, if a row is not longer."""

PARTS = 256
"""Programs that share the sum over rows which the gradient of a weight is."""


@triton.jit
def _forward(
    y, x, weight, x_stride, rows, columns, eps, offset, weighed: tl.constexpr,
    height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)
    column = tl.arange(0, width)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    wide = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0)
    wide = wide.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=1) / columns + eps)
    unit = wide * inverse[:, None]
    if weighed:
        gain = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32) + offset
        unit = unit * gain[None, :]
    narrow = unit.to(y.dtype.element_ty)
    tl.store(y + row[:, None] * columns + column[None, :], narrow, mask=inside)


@triton.jit
def _backward(
    x_grad, x, grad, weight, parts, x_stride, grad_stride, rows, columns, eps, offset,
    weighed: tl.constexpr, trained: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, width)
    known = column < columns
    if weighed:
        gain = tl.load(weight + column, mask=known, other=0.0).to(tl.float32) + offset
    if trained:
        summed = tl.zeros((width,), tl.float32)
    step = tl.num_programs(0) * height
    for start in range(tl.program_id(0) * height, rows, step):
        row = tl.arange(0, height).to(tl.int64) + start
        inside = (row < rows)[:, None] & known[None, :]
        wide = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0)
        wide = wide.to(tl.float32)
        inverse = tl.rsqrt(tl.sum(wide * wide, axis=1) / columns + eps)
        unit = wide * inverse[:, None]
        back = tl.load(grad + row[:, None] * grad_stride + column[None, :], mask=inside, other=0.0)
        back = back.to(tl.float32)
        if trained:
            summed += tl.sum(back * unit, axis=0)
        if weighed:
            back = back * gain[None, :]
        mean = tl.sum(back * unit, axis=1) / columns
        back = (back - unit * mean[:, None]) * inverse[:, None]
        narrow = back.to(x_grad.dtype.element_ty)
        tl.store(x_grad + row[:, None] * columns + column[None, :], narrow, mask=inside)
    if trained:
        tl.store(parts + tl.program_id(0) * columns + column, summed, mask=known)


class CardRmsNorm(torch.autograd.Function):
    """``x / rms(x) * (weight + offset)``; saves its input, as the text does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, offset: float, eps: float) -> Tensor:
        """Normalise x (..., D) over its last axis; ``weight`` (D,) is of any type, or None."""
        ctx.save_for_backward(x, weight)
        ctx.numbers = offset, eps
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rows, columns = kernels.flat_rows(x), x.shape[-1]
        height, width = _tile(columns)
        kernels.launch(
            _forward, (-(-len(rows) // height),), y, rows, rows if weight is None else weight,
            rows.stride(0), len(rows), columns, eps, offset, weighed=weight is not None,
            height=height, width=width, num_warps=_warps(height * width),
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Return the gradient of x, and of a trained weight."""
        x, weight = ctx.saved_tensors
        rows, behind, columns = kernels.flat_rows(x), kernels.flat_rows(grads[0]), x.shape[-1]
        trained, (height, width) = ctx.needs_input_grad[1], _tile(columns)
        programs = -(-len(rows) // height)
        programs = min(programs, PARTS) if trained else programs
        x_grad = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        parts = x.new_empty((programs, columns), dtype=torch.float32) if trained else x_grad
        offset, eps = ctx.numbers
        kernels.launch(
            _backward, (programs,), x_grad, rows, behind, rows if weight is None else weight,
            parts, rows.stride(0), behind.stride(0), len(rows), columns, eps, offset,
            weighed=weight is not None, trained=trained, height=height, width=width,
            num_warps=_warps(height * width),
        )  # fmt: skip
        return x_grad, parts.sum(0) if trained else None, None, None


def rms_norm(x: Tensor, weight: Tensor | None, offset: float, eps: float) -> Tensor:
    """Return x (..., D) normalised over its last axis, times ``weight + offset``."""
    y: Tensor = CardRmsNorm.apply(x, weight, offset, eps)
    return y


def _tile(columns: int) -> tuple[int, int]:
    """Return rows and numbers of a row that a program has at once."""
    width = kernels.power_of_2(columns)
    return max(1, NUMBERS // width), width


def _warps(numbers: int) -> int:
    return min(16, max(4, numbers // 1024))
