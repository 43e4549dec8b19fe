"""The weights of PhiMoE's experts (SparseMixer, Liu et al. 2024) as its model is used: nothing is drawn.

Each expert of a token has a softmax of its own: over the scores near its own among those of
experts that are not chosen yet. T tokens, E experts, k of them for a token.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from edgetune.shape import Experts


def chosen_one_by_one(scores: Tensor, rule: Experts) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the number (T, 1) of each expert, and the probabilities (T, E) that it is weighed by."""
    left = scores
    for _ in range(rule.chosen):
        best = left.sort(dim=-1, descending=True, stable=True).indices[:, :1].contiguous()
        top = left.gather(1, best)
        far = (top - scores) / torch.maximum(scores.abs(), top) > 2 * rule.jitter
        yield best, left.masked_fill(far, float("-inf")).softmax(-1)
        left = left.scatter(1, best, float("-inf"))


def scores_back(scores: Tensor, grad: Tensor, rule: Experts) -> Tensor:
    """Return the gradients of all scores (T, E) for those of weights (T, k)."""
    total = torch.zeros_like(scores)
    for number, (best, shares) in enumerate(chosen_one_by_one(scores, rule)):
        scaled = grad[:, number : number + 1] * shares.gather(1, best)
        total.sub_(shares.mul_(scaled)).scatter_add_(1, best, scaled)
    return total
