"""Which experts the tokens of a mixture go through, and with which weights: all in float32.

T tokens, D hidden size, E experts, k of them for a token.
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
        """Return the scores (T, E) of the tokens of x (B, S, D)."""
        bias = self.tensors.get("router_bias")
        scores = x.reshape(-1, x.shape[-1]).astype(mx.float32) @ self._matrix().T
        return scores if bias is None else scores + bias.astype(mx.float32)

    def rescaled(self, weights: mx.array, chosen: mx.array) -> mx.array:
        """Return weights (T, k) times the numbers of their experts."""
        scale = self.tensors.get("expert_scale")
        return weights if scale is None else weights * scale.astype(mx.float32)[chosen]

    def _matrix(self) -> mx.array:
        wide, scale = self.tensors["router"].astype(mx.float32), self.tensors.get("router_scale")
        if scale is None:
            return wide
        return wide * (scale.astype(mx.float32) * self.rule.hidden**-0.5)


def route(x: mx.array, own: Router) -> tuple[mx.array, mx.array]:
    """Return weights (T, k) in float32 and the experts (T, k) of the tokens of x (B, S, D)."""
    scores, rule = own.scores(x), own.rule
    chosen = _highest(mx.stop_gradient(scores), rule.chosen)
    if rule.normalised:
        weights = mx.softmax(mx.take_along_axis(scores, chosen, axis=-1), axis=-1)
    else:
        weights = mx.take_along_axis(mx.softmax(scores, axis=-1), chosen, axis=-1)
    return own.rescaled(weights, chosen), chosen


def _highest(scores: mx.array, count: int) -> mx.array:
    """Return the places (T, count) of the highest scores, of equal ones the first."""
    numbers, found = mx.arange(scores.shape[-1]), []
    for _ in range(count):
        best = mx.argmax(scores, axis=-1, keepdims=True)
        scores = mx.where(numbers == best, -mx.inf, scores)
        found.append(best)
    return mx.concatenate(found, axis=-1)
