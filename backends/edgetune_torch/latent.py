"""Keys of which all heads share a part (multi-head latent attention).

B rows, H heads, S positions, n channels of a head's own, r that all share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class WithShared(torch.autograd.Function):
    """Puts shared channels behind each head's own; saves nothing."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, shared: Tensor) -> Tensor:
        """Return (B, H, S, n + r) of k (B, H, S, n) and shared (B, 1, S, r)."""
        ctx.own = k.shape[-1]
        return torch.cat((k, shared.expand(-1, k.shape[1], -1, -1)), -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of k, laid out (B, S, H, n), and of what is shared: its sum."""
        own, shared = grads[0][..., : ctx.own], grads[0][..., ctx.own :]
        return (
            own.transpose(1, 2).contiguous().transpose(1, 2) if ctx.needs_input_grad[0] else None,
            shared.sum(1, keepdim=True) if ctx.needs_input_grad[1] else None,
        )


def with_shared(k: Tensor, shared: Tensor) -> Tensor:
    """Return k (B, H, S, n) with shared (B, 1, S, r) behind every head's: (B, H, S, n + r)."""
    out: Tensor = WithShared.apply(k, shared)  # type: ignore[no-untyped-call]
    return out
