"""Which experts the tokens of a mixture go through, and with which weights: all in float32.

T tokens, D hidden size, E experts, k of them for a token, G groups of experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from edgetune.shape import Experts


@dataclass(frozen=True, slots=True)
class Router:
    """The frozen router of one block; its tensors by role."""

    rule: Experts
    tensors: Mapping[str, mx.array]

    def scores(self, x: mx.array) -> mx.array:
        """Return the scores (T, E) of the tokens of x (B, S, D), or their sigmoids."""
        bias = self.tensors.get("router_bias")
        scores = x.reshape(-1, x.shape[-1]).astype(mx.float32) @ self._matrix().T
        scores = scores if bias is None else scores + bias.astype(mx.float32)
        return mx.sigmoid(scores) if self.rule.score == "sigmoid" else scores

    def chosen(self, scores: mx.array) -> mx.array:
        """Return the numbers (T, k) of the experts with the highest scores."""
        correction = self.tensors.get("router_correction")
        if correction is not None:
            scores = scores + correction.astype(mx.float32)
        if self.rule.groups > 1:
            scores = _of_best_groups(scores, self.rule)
        return _highest(scores, self.rule.chosen)

    def rescaled(self, weights: mx.array, chosen: mx.array) -> mx.array:
        """Return weights (T, k) times the numbers of their experts."""
        scale = self.tensors.get("expert_scale")
        if scale is not None:
            weights = weights * scale.astype(mx.float32)[chosen]
        return weights if self.rule.factor == 1.0 else weights * self.rule.factor

    def _matrix(self) -> mx.array:
        wide, scale = self.tensors["router"].astype(mx.float32), self.tensors.get("router_scale")
        if scale is not None:
            wide = wide * (scale.astype(mx.float32) * self.rule.hidden**-0.5)
        return wide


def route(x: mx.array, own: Router) -> tuple[mx.array, mx.array]:
    """Return weights (T, k) in float32 and the experts (T, k) of the tokens of x (B, S, D)."""
    scores, rule = own.scores(x), own.rule
    if rule.score == "sparsemixer":
        return _one_by_one(scores, rule)
    chosen = own.chosen(mx.stop_gradient(scores))
    if rule.score == "sigmoid":
        weights = mx.take_along_axis(scores, chosen, axis=-1)
        if rule.normalised:
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    elif rule.normalised:
        weights = mx.softmax(mx.take_along_axis(scores, chosen, axis=-1), axis=-1)
    else:
        weights = mx.take_along_axis(mx.softmax(scores, axis=-1), chosen, axis=-1)
    return own.rescaled(weights, chosen), chosen


def _one_by_one(scores: mx.array, rule: Experts) -> tuple[mx.array, mx.array]:
    """Return the weights (T, k) of PhiMoE's experts and their numbers (T, k).

    Each expert has a softmax of its own: over the scores near its own among those of experts that
    are not chosen yet.
    """
    plain, left, numbers = mx.stop_gradient(scores), scores, mx.arange(rule.number)
    weights, chosen = [], []
    for _ in range(rule.chosen):
        best = mx.argmax(mx.stop_gradient(left), axis=-1, keepdims=True)
        top = mx.take_along_axis(plain, best, axis=-1)
        far = (top - plain) / mx.maximum(mx.abs(plain), top) > 2 * rule.jitter
        shares = mx.softmax(mx.where(far, -mx.inf, left), axis=-1)
        weights.append(mx.take_along_axis(shares, best, axis=-1))
        chosen.append(best)
        left = mx.where(numbers == best, -mx.inf, left)
    return mx.concatenate(weights, axis=-1), mx.concatenate(chosen, axis=-1)


def _of_best_groups(scores: mx.array, rule: Experts) -> mx.array:
    """Return scores (T, E), those of groups that are not among the best below all others."""
    grouped = scores.reshape(len(scores), rule.groups, -1)
    best = mx.topk(grouped, rule.best_of_group, axis=-1).sum(-1)  # (T, G)
    kept = _highest(best, rule.chosen_groups)
    among = (mx.arange(rule.groups) == kept[..., None]).any(1)  # (T, G)
    return mx.where(among[..., None], grouped, -mx.inf).reshape(scores.shape)


def _highest(scores: mx.array, count: int) -> mx.array:
    """Return the places (T, count) of the highest scores, of equal ones the first."""
    numbers, found = mx.arange(scores.shape[-1]), []
    for _ in range(count):
        best = mx.argmax(scores, axis=-1, keepdims=True)
        scores = mx.where(numbers == best, -mx.inf, scores)
        found.append(best)
    return mx.concatenate(found, axis=-1)
