"""Products with frozen matrices, which save nothing that can be had again.

T tokens, K inputs, N outputs, R rank. The dense form of a matrix lives for one product; the
input of a projection is saved by reference, so that projections which read the same tensor share
it. Where products are wider than activations (:mod:`edgetune_torch.precision`), some rows at a
time are widened into scratch memory, everything is summed there, and the result is rounded once.
Elsewhere the large product comes last and is added to the small ones: what is rounded before it
is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetune.network.ops import Dropout
from edgetune_torch.matrices import Matrix
from edgetune_torch.precision import product_dtype
from edgetune_torch.workspace import Workspace

ROWS = 512
"""Rows that are widened at a time."""

DRAWN = 256
"""Positions of a row whose dropout is drawn at a time."""

SPREAD = 0x9E3779B97F4A7C15
"""An odd number, so that its multiples differ in their lower bits too."""


@dataclass(frozen=True, slots=True)
class Low:
    """What is added to a product: ``scale rows matrix``, in the type of the product.

    ``rows`` is (T, R), ``matrix`` (R, N).
    """

    rows: Tensor
    matrix: Tensor
    scale: float = 1.0

    def columns(self, outputs: slice) -> Low:
        """Return what is added to some of the outputs."""
        return Low(self.rows, self.matrix[:, outputs], self.scale)


def multiplied(x: Tensor, matrix: Matrix, bias: Tensor | None, low: Low | None = None) -> Tensor:
    """Return ``x W^T + bias`` (..., N) for x (..., K), and ``low``, without a way back."""
    rows = _Rows(x, matrix)
    flat, dense = x.flatten(0, -2), rows.dense()
    y = rows.empty(len(dense))
    for span in rows.spans():
        part, wide = rows.part(y, span, "outputs"), rows.upcast(flat, span, "inputs")
        if bias is not None:
            part.copy_(bias)
        _add_product(part, wide, dense.T, low, span, fresh=bias is None)
        rows.store(y, span, part)
    return y.view(*x.shape[:-1], -1)


def multiplied_back(grad: Tensor, matrix: Matrix, low: Low | None = None) -> Tensor:
    """Return ``grad W`` (..., K) for grad (..., N), and ``low``."""
    rows = _Rows(grad, matrix)
    dense = rows.dense()
    x_grad = rows.empty(dense.shape[1])
    for span in rows.spans():
        part = rows.part(x_grad, span, "inputs")
        wide = rows.upcast(grad.flatten(0, -2), span, "outputs")
        _add_product(part, wide, dense, low, span, fresh=True)
        rows.store(x_grad, span, part)
    return x_grad.view(*grad.shape[:-1], -1)


def _add_product(
    part: Tensor, x: Tensor, y: Tensor, low: Low | None, span: slice, *, fresh: bool
) -> None:
    """Add ``x y`` and ``low`` to a part, which holds nothing yet if it is fresh."""
    if low is not None:
        part.addmm_(low.rows[span], low.matrix, alpha=low.scale, beta=0 if fresh else 1)
    elif fresh:
        torch.mm(x, y, out=part)
        return
    part.addmm_(x, y)


def lowered(x: Tensor, factor: Tensor, matrix: Matrix, name: str) -> Tensor:
    """Return ``x factor`` (T, R) in the type of products with ``matrix``.

    ``name`` says which scratch memory of theirs x (T, K) is widened in.
    """
    rows = _Rows(x, matrix)
    low = x.new_empty((len(x), factor.shape[1]), dtype=rows.dtype)
    for span in rows.spans():
        torch.mm(rows.upcast(x, span, name), factor, out=low[span])
    return low


def add_across(
    target: Tensor, x: Tensor, low: Tensor, matrix: Matrix, name: str, scale: float = 1.0
) -> None:
    """Add ``scale x^T low`` (K, R) to a float32 target, for x (T, K) as :func:`lowered` has it."""
    rows = _Rows(x, matrix)
    for span in rows.spans():
        target += _scaled(rows.upcast(x, span, name).T, low[span], scale)


class FrozenLinear(torch.autograd.Function):
    """``y = x W^T + bias``; saves nothing.

    If y is not ``read``, its numbers are any.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix, bias: Tensor | None, read: bool) -> Tensor:
        """Multiply x (..., K) to (..., N)."""
        ctx.matrix = matrix
        if not read:
            return x.new_empty(*x.shape[:-1], matrix.shape[0])
        return multiplied(x, matrix, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        """Return the gradient of x."""
        return multiplied_back(grads[0], ctx.matrix), None, None, None


class LoraLinear(torch.autograd.Function):
    """``y = x W^T + bias + scale * dropout(x) A^T B^T`` with float32 A and B.

    Saves x (shared, by reference) if A is trained, ``dropout(x) A^T`` (T, R) in the type of the
    product, and the seed of the dropout. If y is not ``read``, its numbers are any.
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
        read: bool,
    ) -> Tensor:
        """Multiply x (..., K) to (..., N)."""
        rows = _Rows(x, matrix)
        flat, dense = x.flatten(0, -2), rows.dense() if read else None
        wide_a, wide_b = a.to(rows.dtype), b.to(rows.dtype)
        y, low = rows.empty(len(b)), flat.new_empty((len(flat), len(a)), dtype=rows.dtype)
        kept = None if dropout is None else mask(dropout, x.shape, x.device).flatten(0, -2)
        for span in rows.spans():
            wide = rows.upcast(flat, span, "inputs")
            torch.mm(_dropped(wide, kept, span, dropout), wide_a.T, out=low[span])
            if dense is None:
                continue
            part = rows.part(y, span, "outputs")
            if bias is not None:
                part.copy_(bias)
            part.addmm_(low[span], wide_b.T, alpha=scale, beta=0 if bias is None else 1)
            part.addmm_(wide, dense.T)
            rows.store(y, span, part)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, a, b, low)
        ctx.matrix, ctx.scale, ctx.dropout, ctx.shape = matrix, scale, dropout, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of x, A and B."""
        x, a, b, low = ctx.saved_tensors
        rows = _Rows(grads[0], ctx.matrix)
        grad, flat = grads[0].flatten(0, -2), None if x is None else x.flatten(0, -2)
        wide_a, wide_b = a.to(rows.dtype), b.to(rows.dtype)
        a_grad, b_grad = None if x is None else torch.zeros_like(a), torch.zeros_like(b)
        dense = rows.dense() if ctx.needs_input_grad[0] else None
        x_grad = None if dense is None else rows.empty(a.shape[1])
        kept = None
        if ctx.dropout is not None:
            kept = mask(ctx.dropout, ctx.shape, grad.device).flatten(0, -2)
        for span in rows.spans():
            wide = rows.upcast(grad, span, "outputs")
            low_grad = _scaled(wide, wide_b, ctx.scale)  # (T, R)
            b_grad += _scaled(wide.T, low[span], ctx.scale)
            if flat is not None and a_grad is not None:
                inputs = _dropped(rows.upcast(flat, span, "inputs"), kept, span, ctx.dropout)
                a_grad += low_grad.T @ inputs
            if x_grad is not None and dense is not None:
                part = rows.part(x_grad, span, "inputs")
                if kept is None:
                    torch.mm(low_grad, wide_a, out=part)
                else:
                    part.copy_(_dropped(low_grad @ wide_a, kept, span, ctx.dropout))
                part.addmm_(wide, dense)
                rows.store(x_grad, span, part)
        return (
            None if x_grad is None else x_grad.view(ctx.shape),
            a_grad, b_grad, None, None, None, None, None,
        )  # fmt: skip


def mask(dropout: Dropout, size: torch.Size, device: torch.device) -> Tensor:
    """Return which elements of a tensor (B, S, K) are kept, as booleans.

    Some positions of a row are drawn at a time, each time anew, so that a token's elements do not
    depend on which others are computed with it.
    """
    kept = torch.empty(size, dtype=torch.bool, device=device)
    rows, positions, columns = size
    for row in range(rows):
        at = 0
        while at < positions:
            number, skipped = divmod(dropout.start + at, DRAWN)
            count = min(DRAWN - skipped, positions - at)
            whole = kept[row, at : at + count]
            drawn = whole if count == DRAWN else whole.new_empty(DRAWN, columns)
            seed = (dropout.seed >> 8) + SPREAD * (row * 2**20 + number)
            generator = torch.Generator(device).manual_seed(seed % 2**63)  # it takes 63 bits
            drawn.bernoulli_(1 - dropout.fraction, generator=generator)
            if drawn is not whole:
                whole.copy_(drawn[skipped : skipped + count])
            at += count
    return kept


def frozen_linear(x: Tensor, matrix: Matrix, bias: Tensor | None, *, read: bool = True) -> Tensor:
    """Return ``x W^T + bias`` for a frozen W."""
    y: Tensor = FrozenLinear.apply(x, matrix, bias, read)  # type: ignore[no-untyped-call]
    return y


def lora_linear(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    matrix: Matrix,
    bias: Tensor | None,
    scale: float,
    dropout: Dropout | None = None,
    *,
    read: bool = True,
) -> Tensor:
    """Return ``x W^T + bias + scale * dropout(x) A^T B^T`` for a frozen W."""
    y: Tensor = LoraLinear.apply(  # type: ignore[no-untyped-call]
        x, a, b, matrix, bias, scale, dropout, read
    )
    return y


class _Rows:
    """The rows of one product: in which type it is computed, and in which pieces."""

    def __init__(self, x: Tensor, matrix: Matrix) -> None:
        self.x = x
        self.matrix = matrix
        self.dtype = product_dtype(x.dtype, x.device)
        self.count = x.numel() // x.shape[-1]
        self.workspace.check()

    @property
    def workspace(self) -> Workspace:
        return self.matrix.workspace

    def dense(self) -> Tensor:
        return self.matrix.dense(self.dtype)

    def empty(self, width: int) -> Tensor:
        return torch.empty(self.count, width, dtype=self.x.dtype, device=self.x.device)

    def spans(self) -> Iterator[slice]:
        step = self.count if self.dtype == self.x.dtype else ROWS
        for start in range(0, self.count, max(step, 1)):
            yield slice(start, min(start + step, self.count))

    def upcast(self, rows: Tensor, span: slice, name: str) -> Tensor:
        part = rows[span]
        if part.dtype == self.dtype:
            return part
        return self.workspace.take(name, tuple(part.shape), self.dtype).copy_(part)

    def part(self, out: Tensor, span: slice, name: str) -> Tensor:
        """Return where the rows ``span`` of ``out`` are computed."""
        part = out[span]
        if out.dtype == self.dtype:
            return part
        return self.workspace.take(name, tuple(part.shape), self.dtype)

    def store(self, out: Tensor, span: slice, part: Tensor) -> None:
        """Round a finished piece into ``out``."""
        if out.dtype != self.dtype:
            out[span].copy_(part)


def _scaled(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """Return ``scale * x y``; a card does it in one kernel."""
    if x.device.type == "cpu":
        return (x @ y).mul_(scale)
    return x.new_empty(len(x), y.shape[1]).addmm_(x, y, beta=0, alpha=scale)


def _dropped(x: Tensor, kept: Tensor | None, span: slice, dropout: Dropout | None) -> Tensor:
    if kept is None or dropout is None:
        return x
    return (x * kept[span]).div_(1 - dropout.fraction)
