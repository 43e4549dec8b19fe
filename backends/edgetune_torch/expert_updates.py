"""Low-rank updates of experts: one pair of tensors for all experts of a block.

n rows of one expert, E experts, R rank, K inputs, N outputs. An expert's A and B are taken out of
the pair when its rows are computed, in the type of products; its gradients are added where they
belong in those of the pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgetune.network.ops import ExpertUpdate
from edgetune_torch.linear import Low, add_across, lowered
from edgetune_torch.matrices import Matrix
from edgetune_torch.precision import product_dtype

Grads = Sequence[tuple[slice, Tensor]]
"""Gradients (n, some of N) of outputs."""


@dataclass(frozen=True, slots=True)
class Update:
    """The update of one projection of all experts, and its gradients, where they are wanted."""

    own: ExpertUpdate[Tensor]
    experts: int
    a_grad: Tensor | None = None
    b_grad: Tensor | None = None

    @classmethod
    def of(cls, own: ExpertUpdate[Tensor], experts: int) -> Update:
        """Return an update that does not learn; a fixed A is a constant."""
        a = own.a.detach() if own.fixed else own.a
        return cls(replace(own, a=a), experts)

    def learning(self, *, a: bool, b: bool) -> Update:
        """Return the same update with gradients of zero."""
        own = self.own
        return Update(
            own,
            self.experts,
            torch.zeros_like(own.a) if a else None,
            torch.zeros_like(own.b) if b else None,
        )

    def ahead(self, expert: int, x: Tensor, matrix: Matrix) -> Low:
        """Return what it adds to a projection of x (n, K)."""
        a, b = self._a(expert, x), self._b(expert, x)
        return Low(lowered(x, a.T, matrix, "inputs"), b.T, self.own.scale)

    def back(self, expert: int, grads: Grads, matrix: Matrix) -> Low:
        """Return what it adds to the gradient (n, K) of an input, for those of outputs."""
        first = grads[0][1]
        b, rows = self._b(expert, first), None
        for outputs, grad in grads:
            part = lowered(grad, b[outputs], matrix, "outputs")
            rows = part if rows is None else rows.add_(part)
        assert rows is not None
        return Low(rows.mul_(self.own.scale), self._a(expert, first))

    def learn(
        self, expert: int, x: Tensor, ahead: Tensor, back: Tensor, grads: Grads, matrix: Matrix
    ) -> None:
        """Add the gradients of A and B for x (n, K), what A made of it, and what B of gradients."""
        if self.b_grad is not None:
            own = self.b_grad.view(len(self.b_grad), -1, self.experts)[:, :, expert]
            for outputs, grad in grads:
                add_across(own[outputs], grad, ahead, matrix, "outputs", self.own.scale)
        if self.a_grad is not None:
            own = self.a_grad.view(self.experts, -1, self.a_grad.shape[1])[expert]
            add_across(own.T, x, back, matrix, "inputs")

    def _a(self, expert: int, like: Tensor) -> Tensor:
        """Return A (R, K) of an expert."""
        a = self.own.a.detach()
        return a.view(self.experts, -1, a.shape[1])[expert].to(_type(like))

    def _b(self, expert: int, like: Tensor) -> Tensor:
        """Return B (N, R) of an expert, a copy."""
        b = self.own.b.detach()
        return b.view(len(b), -1, self.experts)[:, :, expert].to(_type(like)).contiguous()


def _type(like: Tensor) -> torch.dtype:
    return product_dtype(like.dtype, like.device)


Updates = Mapping[str, Update]
"""By the role of what they update."""
