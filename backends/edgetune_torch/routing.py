"""Which experts the tokens of a mixture go through, and with which weights: all in float32.

T tokens, D hidden size, E experts, k of them for a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetune.shape import Experts


@dataclass(frozen=True, slots=True)
class Router:
    """The frozen router of one block; its tensors by role."""

    rule: Experts
    tensors: Mapping[str, Tensor]

    def matrix(self) -> Tensor:
        """Return what makes scores (E, D)."""
        wide, scale = self.tensors["router"].float(), self.tensors.get("router_scale")
        return wide if scale is None else wide * (scale.float() * self.rule.hidden**-0.5)

    def rescaled(self, weights: Tensor, chosen: Tensor) -> Tensor:
        """Return weights (T, k), or their gradient, times the numbers of their experts."""
        scale = self.tensors.get("expert_scale")
        return weights if scale is None else weights * scale.float()[chosen]


class Routing(torch.autograd.Function):
    """The experts of each token and their weights; saves both, or all probabilities (T, E)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: Router) -> tuple[Tensor, Tensor]:
        """Return weights (T, k) in float32 and the numbers (T, k) of the experts."""
        rule, bias, matrix = own.rule, own.tensors.get("router_bias"), own.matrix()
        scores = x.flatten(0, -2).float() @ matrix.T
        del matrix
        if bias is not None:
            scores += bias
        found = scores.sort(dim=-1, descending=True, stable=True).indices
        chosen = found[:, : rule.chosen].contiguous()
        del found
        if rule.normalised:
            kept = weights = scores.gather(1, chosen).softmax(-1)
        else:
            kept = scores.softmax(-1)
            weights = kept.gather(1, chosen)
        ctx.save_for_backward(kept, chosen)
        ctx.own, ctx.like = own, (x.shape, x.dtype)
        ctx.mark_non_differentiable(chosen)
        return own.rescaled(weights, chosen), chosen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x."""
        kept, chosen = ctx.saved_tensors
        rule = ctx.own.rule
        weights = kept if rule.normalised else kept.gather(1, chosen)
        scaled = ctx.own.rescaled(grads[0], chosen) * weights
        total = scaled.sum(-1, keepdim=True)
        if rule.normalised:
            scores = torch.zeros(len(chosen), rule.number, device=scaled.device)
            scores.scatter_(1, chosen, scaled.addcmul_(weights, total, value=-1))
        else:
            scores = (kept * total).neg_().scatter_add_(1, chosen, scaled)
        shape, dtype = ctx.like
        return (scores @ ctx.own.matrix()).to(dtype).view(shape), None


def route(x: Tensor, own: Router) -> tuple[Tensor, Tensor]:
    """Return weights (T, k) in float32 and the experts (T, k) of the tokens of x (B, S, D)."""
    weights, chosen = Routing.apply(x, own)  # type: ignore[no-untyped-call]
    return weights, chosen
