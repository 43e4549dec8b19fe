"""Choosing experts as the MLX engine writes it.

T tokens, D hidden size, E experts, k of them for a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from edgetune.memory.lazy.arrays import counted, gathered, matmul, reduced, softmax
from edgetune.memory.lazy.elementwise import add, cast, compared, multiply, times, where
from edgetune.memory.lazy.graph import Array
from edgetune.memory.lazy.views import concatenate, reshape, stopped, swapaxes
from edgetune.shape import Experts
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class Router:
    """The frozen router of one block; its tensors by role."""

    rule: Experts
    tensors: Mapping[str, Array]

    def scores(self, x: Array) -> Array:
        """Return the scores (T, E) of the tokens of x (B, S, D)."""
        bias = self.tensors.get("router_bias")
        flat = cast(reshape(x, (prod(x.shape[:-1]), x.shape[-1])), FLOAT32_BYTES)
        scores = matmul(flat, swapaxes(self._matrix(), 0, 1))
        return scores if bias is None else add(scores, cast(bias, FLOAT32_BYTES))

    def rescaled(self, weights: Array, chosen: Array) -> Array:
        """Return weights (T, k) times the numbers of their experts."""
        scale = self.tensors.get("expert_scale")
        if scale is None:
            return weights
        return multiply(weights, gathered(cast(scale, FLOAT32_BYTES), chosen, chosen.shape))

    def _matrix(self) -> Array:
        wide = cast(self.tensors["router"], FLOAT32_BYTES)
        scale = self.tensors.get("router_scale")
        return wide if scale is None else multiply(wide, times(cast(scale, FLOAT32_BYTES)))


def route(x: Array, own: Router) -> tuple[Array, Array]:
    """Return weights (T, k) in float32 and the experts (T, k) of the tokens of x (B, S, D)."""
    scores, rule = own.scores(x), own.rule
    chosen = _highest(stopped(scores), rule.chosen)
    if rule.normalised:
        weights = softmax(gathered(scores, chosen, chosen.shape))
    else:
        weights = gathered(softmax(scores), chosen, chosen.shape)
    return own.rescaled(weights, chosen), chosen


def _highest(scores: Array, count: int) -> Array:
    numbers, found = counted(scores.shape[-1:]), []
    for _ in range(count):
        best = reduced(scores, FLOAT32_BYTES)
        scores = where(compared(numbers, best), scores)
        found.append(best)
    return concatenate(found, -1)
