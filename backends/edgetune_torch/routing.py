"""Which experts the tokens of a mixture go through, and with which weights: all in float32.

T tokens, D hidden size, E experts, k of them for a token, G groups of experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetune.shape import Experts
from edgetune_torch.sparsemixer import chosen_one_by_one, scores_back


@dataclass(frozen=True, slots=True)
class Router:
    """The frozen router of one block; its tensors by role."""

    rule: Experts
    tensors: Mapping[str, Tensor]

    def matrix(self) -> Tensor:
        """Return what makes scores (E, D)."""
        wide, scale = self.tensors["router"].float(), self.tensors.get("router_scale")
        return wide if scale is None else wide * (scale.float() * self.rule.hidden**-0.5)

    def scores(self, x: Tensor) -> Tensor:
        """Return the scores (T, E) of the tokens of x (B, S, D), or their sigmoids."""
        matrix, bias = self.matrix(), self.tensors.get("router_bias")
        scores = x.flatten(0, -2).float() @ matrix.T
        if bias is not None:
            scores += bias
        return scores.sigmoid_() if self.rule.score == "sigmoid" else scores

    def chosen(self, scores: Tensor) -> Tensor:
        """Return the numbers (T, k) of the experts with the highest scores."""
        correction = self.tensors.get("router_correction")
        if correction is not None:
            scores = scores + correction
        if self.rule.groups > 1:
            scores = _of_best_groups(scores, self.rule)
        return _highest(scores, self.rule.chosen)

    def rescaled(self, weights: Tensor, chosen: Tensor) -> Tensor:
        """Return weights (T, k), or their gradient, times the numbers of their experts."""
        scale = self.tensors.get("expert_scale")
        if scale is not None:
            weights = weights * scale.float()[chosen]
        return weights if self.rule.factor == 1.0 else weights * self.rule.factor


class Routing(torch.autograd.Function):
    """The experts of each token and their weights.

    Saves the numbers of the experts, and their weights or sigmoids, or all probabilities or scores
    (T, E).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: Router) -> tuple[Tensor, Tensor]:
        """Return weights (T, k) in float32 and the numbers (T, k) of the experts."""
        kept, weights, chosen = _weighed(own.scores(x), own)
        ctx.save_for_backward(kept, chosen)
        ctx.own, ctx.like = own, (x.shape, x.dtype)
        ctx.mark_non_differentiable(chosen)
        return own.rescaled(weights, chosen), chosen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x."""
        kept, chosen = ctx.saved_tensors
        grad, rule = ctx.own.rescaled(grads[0], chosen), ctx.own.rule
        if rule.score == "sparsemixer":
            scores = scores_back(kept, grad, rule)
        elif rule.score == "sigmoid":
            scores = _spread(_sigmoid_back(kept, grad, rule), chosen, rule)
        else:
            scores = _softmax_back(kept, grad, chosen, rule)
        shape, dtype = ctx.like
        return (scores @ ctx.own.matrix()).to(dtype).view(shape), None


def route(x: Tensor, own: Router) -> tuple[Tensor, Tensor]:
    """Return weights (T, k) in float32 and the experts (T, k) of the tokens of x (B, S, D)."""
    weights, chosen = Routing.apply(x, own)  # type: ignore[no-untyped-call]
    return weights, chosen


def _weighed(scores: Tensor, own: Router) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is kept for the way back, weights (T, k) and the numbers (T, k) of experts."""
    rule = own.rule
    if rule.score == "sparsemixer":
        each = [(best, p.gather(1, best)) for best, p in chosen_one_by_one(scores, rule)]
        chosen, weights = (torch.cat(parts, 1) for parts in zip(*each, strict=True))
        return scores, weights, chosen
    chosen = own.chosen(scores)
    if rule.score == "sigmoid":
        kept = scores.gather(1, chosen)
        return kept, kept / _total(kept) if rule.normalised else kept, chosen
    if rule.normalised:
        weights = scores.gather(1, chosen).softmax(-1)
        return weights, weights, chosen
    kept = scores.softmax(-1)
    return kept, kept.gather(1, chosen), chosen


def _highest(scores: Tensor, count: int) -> Tensor:
    """Return the places (T, count) of the highest scores, of equal ones the first."""
    found = scores.sort(dim=-1, descending=True, stable=True).indices
    return found[:, :count].contiguous()


def _of_best_groups(scores: Tensor, rule: Experts) -> Tensor:
    """Return scores (T, E), those of groups that are not among the best below all others."""
    grouped = scores.view(len(scores), rule.groups, -1)
    best = grouped.topk(rule.best_of_group, dim=-1).values.sum(-1)  # (T, G)
    left_out = torch.ones_like(best, dtype=torch.bool)
    left_out.scatter_(1, _highest(best, rule.chosen_groups), value=False)
    return grouped.masked_fill(left_out[..., None], float("-inf")).view_as(scores)


def _total(sigmoids: Tensor) -> Tensor:
    """Return the sums (T, 1) of the chosen sigmoids, above zero."""
    return sigmoids.sum(-1, keepdim=True).add_(1e-20)


def _sigmoid_back(kept: Tensor, grad: Tensor, rule: Experts) -> Tensor:
    """Return the gradients of the chosen scores (T, k) for those of weights."""
    if rule.normalised:
        total = _total(kept)
        grad = (grad - (grad * kept).sum(-1, keepdim=True) / total) / total
    return grad * (kept * (1 - kept))


def _softmax_back(kept: Tensor, grad: Tensor, chosen: Tensor, rule: Experts) -> Tensor:
    """Return the gradients of all scores (T, E) for those of weights."""
    weights = kept if rule.normalised else kept.gather(1, chosen)
    scaled = grad * weights
    total = scaled.sum(-1, keepdim=True)
    if rule.normalised:
        return _spread(scaled.addcmul_(weights, total, value=-1), chosen, rule)
    return (kept * total).neg_().scatter_add_(1, chosen, scaled)


def _spread(grad: Tensor, chosen: Tensor, rule: Experts) -> Tensor:
    """Return the gradients of all scores (T, E), which are zero but for the chosen ones."""
    scores = torch.zeros(len(chosen), rule.number, device=grad.device)
    return scores.scatter_(1, chosen, grad)
