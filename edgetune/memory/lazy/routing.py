"""Choosing experts as the MLX engine writes it.

T tokens, D hidden size, E experts, k of them for a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from edgetune.memory.lazy.arrays import counted, gathered, made_of, matmul, reduced, softmax
from edgetune.memory.lazy.elementwise import (
    BOOL_BYTES,
    add,
    cast,
    compared,
    divide,
    mapped,
    multiply,
    plus,
    sigmoid,
    subtract,
    times,
    where,
)
from edgetune.memory.lazy.graph import Array
from edgetune.memory.lazy.views import (
    concatenate,
    cut,
    expand,
    reshape,
    stopped,
    swapaxes,
    total,
)
from edgetune.shape import Experts
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class Router:
    """The frozen router of one block; its tensors by role."""

    rule: Experts
    tensors: Mapping[str, Array]

    def scores(self, x: Array) -> Array:
        """Return the scores (T, E) of the tokens of x (B, S, D), or their sigmoids."""
        bias = self.tensors.get("router_bias")
        flat = cast(reshape(x, (prod(x.shape[:-1]), x.shape[-1])), FLOAT32_BYTES)
        scores = matmul(flat, swapaxes(self._matrix(), 0, 1))
        scores = scores if bias is None else add(scores, cast(bias, FLOAT32_BYTES))
        return sigmoid(scores) if self.rule.score == "sigmoid" else scores

    def chosen(self, scores: Array) -> Array:
        """Return the numbers (T, k) of the experts with the highest scores."""
        correction = self.tensors.get("router_correction")
        if correction is not None:
            scores = add(scores, cast(correction, FLOAT32_BYTES))
        if self.rule.groups > 1:
            scores = _of_best_groups(scores, self.rule)
        return _highest(scores, self.rule.chosen)

    def rescaled(self, weights: Array, chosen: Array) -> Array:
        """Return weights (T, k) times the numbers of their experts."""
        scale = self.tensors.get("expert_scale")
        if scale is not None:
            numbers = gathered(cast(scale, FLOAT32_BYTES), chosen, chosen.shape)
            weights = multiply(weights, numbers)
        return weights if self.rule.factor == 1.0 else times(weights)

    def _matrix(self) -> Array:
        wide = cast(self.tensors["router"], FLOAT32_BYTES)
        scale = self.tensors.get("router_scale")
        return wide if scale is None else multiply(wide, times(cast(scale, FLOAT32_BYTES)))


def route(x: Array, own: Router) -> tuple[Array, Array]:
    """Return weights (T, k) in float32 and the experts (T, k) of the tokens of x (B, S, D)."""
    scores, rule = own.scores(x), own.rule
    if rule.score == "sparsemixer":
        return _one_by_one(scores, rule)
    chosen = own.chosen(stopped(scores))
    if rule.score == "sigmoid":
        weights = gathered(scores, chosen, chosen.shape)
        if rule.normalised:
            weights = divide(weights, plus(total(weights, (-1,))))
    elif rule.normalised:
        weights = softmax(gathered(scores, chosen, chosen.shape))
    else:
        weights = gathered(softmax(scores), chosen, chosen.shape)
    return own.rescaled(weights, chosen), chosen


def _one_by_one(scores: Array, rule: Experts) -> tuple[Array, Array]:
    plain, left, numbers = stopped(scores), scores, counted((rule.number,))
    weights, chosen = [], []
    for _ in range(rule.chosen):
        best = reduced(stopped(left), FLOAT32_BYTES)
        top = gathered(plain, best, best.shape)
        far = compared(divide(subtract(top, plain), multiply(mapped(plain), top)))
        shares = softmax(where(far, left))
        weights.append(gathered(shares, best, best.shape))
        chosen.append(best)
        left = where(compared(numbers, best), left)
    return concatenate(weights, -1), concatenate(chosen, -1)


def _of_best_groups(scores: Array, rule: Experts) -> Array:
    tokens = scores.shape[0]
    grouped = reshape(scores, (tokens, rule.groups, rule.number // rule.groups))
    best = made_of((grouped,), grouped.shape, FLOAT32_BYTES)  # sorted, of which a part is a view
    sums = total(cut(best, -1, 0, rule.best_of_group), (-1,), keep=False)
    kept = expand(_highest(sums, rule.chosen_groups), 2)
    among = reduced(swapaxes(compared(counted((rule.groups,)), kept), 1, 2), BOOL_BYTES)
    return reshape(where(among, grouped), scores.shape)


def _highest(scores: Array, count: int) -> Array:
    numbers, found = counted(scores.shape[-1:]), []
    for _ in range(count):
        best = reduced(scores, FLOAT32_BYTES)
        scores = where(compared(numbers, best), scores)
        found.append(best)
    return concatenate(found, -1)
