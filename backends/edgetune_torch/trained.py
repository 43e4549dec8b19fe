"""Trained biases and matrices.

T tokens, K inputs, N outputs, R rank, V vocabulary, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class AddBias(torch.autograd.Function):
    """``y + bias``; the gradient of the bias is summed in float32."""

    @staticmethod
    def forward(_: Any, y: Tensor, bias: Tensor) -> Tensor:
        """Add bias (N) to y (..., N)."""
        return y + bias.to(y.dtype)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of y and of the bias."""
        (grad,) = grads
        return grad, grad.flatten(0, -2).float().sum(0)


class TrainedLinear(torch.autograd.Function):
    """``y = x W^T`` with a float32 W (N, K); saves x and no converted copy of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply x (..., K) to (..., N)."""
        ctx.save_for_backward(x, weight)
        return x @ weight.to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the gradients of x and W."""
        x, weight = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)  # (T, N)
        weight_grad = (grad.T @ x.flatten(0, -2)).float()
        if not ctx.needs_input_grad[0]:
            return None, weight_grad
        return (grad @ weight.to(grad.dtype)).view(x.shape), weight_grad


class TableRows(torch.autograd.Function):
    """Rows of a float32 table (V, D); the backward pass adds to its ``grad`` in place.

    A gradient that autograd adds up would be another (V, D).
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows (..., D) of tokens (...)."""
        ctx.save_for_backward(tokens)
        ctx.table = table
        return table[tokens].to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        """Add the gradients of the rows, those of a token in the order of its positions."""
        tokens, summed = ctx.saved_tensors[0].flatten(), gradient_of(ctx.table)
        rows = grads[0].flatten(0, -2).float()
        if rows.is_cuda:  # sorted by token: atomic additions would have no order
            summed.index_put_((tokens,), rows, accumulate=True)
        else:
            summed.index_add_(0, tokens, rows)
        return None, None, None


class ScaledMatrix(torch.autograd.Function):
    """A constant matrix (N, R), its rows and columns multiplied; saves its inputs alone."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, columns: Tensor) -> Tensor:
        """Multiply by rows (N) and columns (R)."""
        ctx.save_for_backward(rows, matrix, columns)
        return (matrix * columns).mul_(rows[:, None])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        """Return the gradients of rows and columns."""
        rows, matrix, columns = ctx.saved_tensors
        both = grads[0] * matrix
        return both @ columns, None, rows @ both


def gradient_of(parameter: Tensor) -> Tensor:
    """Return what the gradient of a trained tensor is added up in."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def table_rows(table: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the rows (..., D) of a trained table (V, D)."""
    out: Tensor = TableRows.apply(table, tokens, dtype)  # type: ignore[no-untyped-call]
    return out


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """Return ``y + bias`` for a trained bias (N)."""
    out: Tensor = AddBias.apply(y, bias)  # type: ignore[no-untyped-call]
    return out


def trained_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x W^T`` for a trained W (N, K)."""
    out: Tensor = TrainedLinear.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


def scaled_matrix(rows: Tensor, matrix: Tensor, columns: Tensor) -> Tensor:
    """Return a constant matrix (N, R) with its rows and columns multiplied by trained vectors."""
    out: Tensor = ScaledMatrix.apply(rows, matrix, columns)  # type: ignore[no-untyped-call]
    return out
