"""Low-rank updates of experts: one pair of tensors for all experts of a block.

n sorted choices, E experts, R rank, K inputs, N outputs. Every choice goes through the A and the B
of its expert by kernels that gather; gradients of them are sums over the choices of each expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from edgetune.network.ops import ExpertUpdate
from edgetune_mlx.matrices import Gather
from edgetune_mlx.precision import multiplies_quantized


@dataclass(frozen=True, slots=True)
class Update:
    """A (E, R, K) and B (E, N, R) of one stack, in the type of products that gather."""

    a: mx.array
    b: mx.array
    scale: float

    @classmethod
    def of(cls, own: ExpertUpdate[mx.array], experts: int, dtype: mx.Dtype) -> Update:
        """Return the update for choices whose activations have a type."""
        kind = gathering(dtype)
        a = own.a.reshape(experts, -1, own.a.shape[1]).astype(kind)
        b = own.b.reshape(len(own.b), -1, experts).transpose(2, 0, 1).astype(kind)
        return cls(a, mx.contiguous(b), own.scale)

    def low(self, x: mx.array, gather: Gather) -> mx.array:
        """Return what A makes (n, R) of x (rows, K)."""
        return _gathered(x, self.a.swapaxes(1, 2), gather)

    def added(self, low: mx.array, gather: Gather) -> mx.array:
        """Return what is added to a product (n, N) for what A made."""
        return self.scale * _gathered(low, self.b.swapaxes(1, 2), gather)

    def low_back(self, grad: mx.array, gather: Gather) -> mx.array:
        """Return the gradient (n, R) of what A made, for that of the outputs (rows, N)."""
        return self.scale * _gathered(grad, self.b, gather)

    def back(self, low_grad: mx.array, gather: Gather) -> mx.array:
        """Return what is added to the gradient (n, K) of the input."""
        return _gathered(low_grad, self.a, gather)

    def learned(
        self, x: mx.array, low: mx.array, low_grad: mx.array, grad: mx.array, runs: mx.array
    ) -> list[mx.array]:
        """Return the gradients of A (E R, K) and B (N, R E).

        They are for what A read (n, K) and made (n, R), the gradient of that, and of outputs (n, N).
        """
        a = mx.segmented_mm(low_grad.T, x.astype(low_grad.dtype), runs)
        b = self.scale * mx.segmented_mm(grad.astype(low.dtype).T, low, runs)
        b = b.transpose(1, 2, 0).reshape(grad.shape[-1], -1)
        return [a.reshape(-1, x.shape[-1]).astype(mx.float32), b.astype(mx.float32)]


def gathering(dtype: mx.Dtype) -> mx.Dtype:
    """Return the type in which choices are multiplied: a processor gathers in float32 alone."""
    return dtype if multiplies_quantized() else mx.float32


def runs_of(matrices: mx.array, experts: int) -> mx.array:
    """Return where the choices of each expert begin and end (E, 2), for their sorted numbers (n,)."""
    counts = mx.zeros((experts,), mx.uint32).at[matrices].add(mx.array(1, mx.uint32))
    ends = mx.cumsum(counts)
    return mx.stack([ends - counts, ends], axis=1)


def _gathered(x: mx.array, stack: mx.array, gather: Gather) -> mx.array:
    """Return rows of x, each times one of a stack of matrices, in the type of these."""
    return mx.gather_mm(
        x[:, None].astype(stack.dtype), stack, gather.rows, gather.matrices,
        sorted_indices=gather.rows is None,
    )[:, 0]  # fmt: skip
