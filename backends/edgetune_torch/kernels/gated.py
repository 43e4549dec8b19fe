"""Gated activations on a card (SwiGLU, GeGLU and the sigmoid gate), forward and back.

T rows, F numbers of a row.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgetune_torch import kernels

NAMES = frozenset({"silu", "gelu", "gelu_tanh", "sigmoid"})
"""Activations that are here; others have the text alone."""

NUMBERS = 1024
"""Numbers that a program computes."""


@triton.jit
def _activation(x, name: tl.constexpr):
    """Return an activation of x and its derivative."""
    if name == "gelu":
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        y = x * share
        slope = share + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif name == "gelu_tanh":
        square = x * x
        # 0.5 (1 + tanh(z)) is the sigmoid of 2 z
        share = tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * square))
        y = x * share
        inner = 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * square)
        slope = share + x * share * (1.0 - share) * inner
    elif name == "silu":
        share = tl.sigmoid(x)
        y = x * share
        slope = share * (1.0 + x * (1.0 - share))
    else:
        y = tl.sigmoid(x)
        slope = y * (1.0 - y)
    return y, slope


@triton.jit
def _forward(
    y, gate, up, gate_stride, up_stride, columns, name: tl.constexpr, size: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * size + tl.arange(0, size)
    known = column < columns
    g = tl.load(gate + row * gate_stride + column, mask=known, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=known, other=0.0).to(tl.float32)
    active, _ = _activation(g, name)
    narrow = active.to(y.dtype.element_ty).to(tl.float32) * u
    tl.store(y + row * columns + column, narrow.to(y.dtype.element_ty), mask=known)


@triton.jit
def _backward(
    gate_grad, up_grad, gate, up, grad, gate_stride, up_stride, grad_stride, columns,
    name: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * size + tl.arange(0, size)
    known = column < columns
    g = tl.load(gate + row * gate_stride + column, mask=known, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=known, other=0.0).to(tl.float32)
    back = tl.load(grad + row * grad_stride + column, mask=known, other=0.0).to(tl.float32)
    active, slope = _activation(g, name)
    of_gate, of_up = back * u * slope, back * active
    tl.store(gate_grad + row * columns + column, of_gate.to(up_grad.dtype.element_ty), mask=known)
    tl.store(up_grad + row * columns + column, of_up.to(up_grad.dtype.element_ty), mask=known)


class CardGatedActivation(torch.autograd.Function):
    """``activation(gate) * up``; saves both inputs, as the text does."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, name: str) -> Tensor:
        """Combine gate and up (..., F)."""
        ctx.save_for_backward(gate, up)
        ctx.name = name
        gates, ups, columns = kernels.flat_rows(gate), kernels.flat_rows(up), up.shape[-1]
        y = torch.empty(up.shape, dtype=up.dtype, device=up.device)
        kernels.launch(
            _forward, _grid(gates), y, gates, ups, gates.stride(0), ups.stride(0), columns,
            name=name, size=NUMBERS,
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of gate and up."""
        gate, up = ctx.saved_tensors
        gates, ups, back = (kernels.flat_rows(x) for x in (gate, up, grads[0]))
        gate_grad, up_grad = (
            torch.empty(up.shape, dtype=up.dtype, device=up.device) for _ in range(2)
        )
        kernels.launch(
            _backward, _grid(gates), gate_grad, up_grad, gates, ups, back, gates.stride(0),
            ups.stride(0), back.stride(0), up.shape[-1], name=ctx.name, size=NUMBERS,
        )  # fmt: skip
        return gate_grad, up_grad, None


def gated_activation(gate: Tensor, up: Tensor, name: str) -> Tensor:
    """Return ``activation(gate) * up``, for an activation among :data:`NAMES`."""
    y: Tensor = CardGatedActivation.apply(gate, up, name)
    return y


def _grid(rows: Tensor) -> tuple[int, int]:
    return len(rows), -(-rows.shape[1] // NUMBERS)
