"""The processor's flash attention in float32, row by row or document by document.

Where there is a kernel for 16 bits (:mod:`edgetune_torch.cpu_kernels`), it computes the rows of a
micro-batch in which no document goes on from another one.

A document that goes on from another one attends twice: to the tokens before it, which it all
sees, and to its own. The two are joined by the sums of their exponents; on the way back each part
is given the joint output and sum, which makes its gradients those of the whole.

B rows, H heads, G key/value heads, S positions, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetune_torch.cpu_kernels import attention as kernel
from edgetune_torch.documents import Documents, Shared, rows_of
from edgetune_torch.precision import attention_dtype

_EVERYTHING = slice(None)

Attended = tuple[Tensor, Tensor]
"""An output (B, H, S, h), and for each query the logarithm (B, H, S) of its sum of exponents."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows, the positions of one document in them, and those that it goes on from."""

    rows: slice
    own: slice
    trunk: slice | None = None

    @property
    def seen(self) -> tuple[tuple[slice, bool], ...]:
        """The positions of keys, and whether only those before a query are seen."""
        own = (self.own, True)
        return (own,) if self.trunk is None else (own, (self.trunk, False))

    def of(self, x: Tensor, positions: slice) -> Tensor:
        """Return a part of x (B, heads, S, h), a view."""
        return x[self.rows, :, positions]


class FusedOnCpu(torch.autograd.Function):
    """Saves q, k, v, the output (which the next projection saves too) and one float a query.

    What is narrower is widened a piece at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents,
        shared: Shared,
    ) -> Tensor:  # fmt: skip
        """Return the output (B, H, S, h), laid out (B, S, H, h)."""
        dtype, ctx.scale = attention_dtype(q.dtype, q.device), scale
        ctx.pieces = list(_pieces(documents, shared, apart=dtype != q.dtype))
        ctx.served = kernel.served(q, k, v) and all(piece.trunk is None for piece in ctx.pieces)
        ctx.whole = ctx.served and all(piece.own == _EVERYTHING for piece in ctx.pieces)
        out, sums = laid_out(q, filled=ctx.whole), []
        for piece in ctx.pieces:
            if ctx.served:
                own = [piece.of(x, piece.own) for x in (q, k, v, out)]
                sums.append(kernel.attend(own[0], own[1], own[2], scale, own[3]))
                continue
            queries, found = piece.of(q, piece.own).to(dtype), []
            for at, causal in piece.seen:
                keys, values = (piece.of(x, at).to(dtype) for x in (k, v))
                found.append(
                    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                        queries, keys, values, 0.0, causal, scale=scale
                    )
                )
                del keys, values
            part, log_sum = found[0] if len(found) == 1 else joined(*found)
            piece.of(out, piece.own).copy_(part)
            del part, found, queries  # they must not live on beside the next piece
            sums.append(log_sum)
        ctx.save_for_backward(q, k, v, out, *sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of q, k and v."""
        q, k, v, out, *sums = ctx.saved_tensors
        dtype = attention_dtype(q.dtype, q.device)
        results = tuple(laid_out(x, filled=ctx.whole) for x in (q, k, v))
        for piece, log_sum in zip(ctx.pieces, sums, strict=True):
            if ctx.served:
                own = [piece.of(x, piece.own) for x in (q, k, v, out, grads[0])]
                into = [piece.of(x, piece.own) for x in results]
                kernel.attend_back(own, log_sum, ctx.scale, into)
                continue
            grad, queries, made = (piece.of(x, piece.own).to(dtype) for x in (grads[0], q, out))
            for at, causal in piece.seen:
                keys, values = (piece.of(x, at).to(dtype) for x in (k, v))
                parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    grad, queries, keys, values, made, log_sum, 0.0, causal, scale=ctx.scale
                )
                for result, part, where in zip(results, parts, (piece.own, at, at), strict=True):
                    piece.of(result, where).add_(part)
                del keys, values, parts, part
            del grad, queries, made
        return (*results, None, None, None)


def joined(one: Attended, other: Attended) -> Attended:
    """Return the output over the keys of both, in place of one's, and the sum's logarithm."""
    (out, sums), (other_out, other_sums) = one, other
    both = torch.logaddexp(sums, other_sums)
    out.mul_((sums - both).exp_()[..., None])
    out.add_(other_out.mul_((other_sums - both).exp_()[..., None]))
    return out, both


def _pieces(documents: Documents, shared: Shared, *, apart: bool) -> Iterator[Piece]:
    """Yield the documents; rows of one document each go together unless ``apart``, padding too."""
    if all(len(row) <= 1 for row in documents):
        rows = [slice(row, row + 1) for row in range(len(documents))] if apart else [_EVERYTHING]
        yield from (Piece(row, _EVERYTHING) for row in rows)
        return
    for number, row in rows_of(documents, shared):
        for span in row:
            yield Piece(slice(number, number + 1), span.own, span.trunk)


def laid_out(x: Tensor, *, filled: bool = False) -> Tensor:
    """Return zeros like x (B, H, S, h) that can be flattened to (B, S, H h) without a copy.

    What will be ``filled`` anyway has any numbers.
    """
    rows, heads, positions, size = x.shape
    new = x.new_empty if filled else x.new_zeros
    return new(rows, positions, heads, size).transpose(1, 2)
