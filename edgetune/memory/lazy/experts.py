"""A mixture of experts as the MLX engine writes it: all choices at once, sorted by expert.

T tokens, D hidden size, k experts of a token, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from math import prod

from edgetune.memory.lazy.arrays import gathered, matmul, sorted_places
from edgetune.memory.lazy.elementwise import add, cast, multiply, sigmoid, times
from edgetune.memory.lazy.gradients import custom, recomputed, vjp
from edgetune.memory.lazy.graph import Array, Grads, Operation, Wanted
from edgetune.memory.lazy.matrices import Matrix
from edgetune.memory.lazy.pointwise import clamped, gated_activation
from edgetune.memory.lazy.views import (
    cut,
    depends,
    expand,
    flatten,
    reshape,
    split,
    squeeze,
    stopped,
    swapaxes,
    total,
)
from edgetune.shape import Experts
from edgetune.storage import FLOAT32_BYTES


def shared(x: Array, y: Array, gate: Array) -> Array:
    """Return y (B, S, D) times the sigmoid of a score of x (B, S, D)."""

    def scaled(x: Array, y: Array, gate: Array) -> Array:
        score = matmul(cast(x, FLOAT32_BYTES), swapaxes(cast(gate, FLOAT32_BYTES), 0, 1))
        return multiply(y, cast(sigmoid(score), y.width))

    return recomputed(scaled, x, y, stopped(gate))


@dataclass(frozen=True, slots=True)
class Gather:
    """Which rows go through which matrices; ``rows`` is None where each goes once."""

    count: int
    matrices: Array
    rows: Array | None


@dataclass(frozen=True, slots=True)
class FrozenExperts:
    """The experts of one block: by role the matrices of all, and which tokens chose them."""

    rule: Experts
    activation: str
    matrices: Mapping[str, Matrix]
    biases: Mapping[str, Array]
    chosen: Array
    product: int
    """Bytes of a number where it is multiplied: a processor gathers in float32 alone."""

    def forward(self, x: Array, weights: Array) -> Array:
        """Return the weighted sum (T, D) of what the experts make of x (T, D)."""
        order = self._order()
        reading, own = self._gather(order, tokens=True), self._gather(order, tokens=False)
        inner = self._gated(*(self._times(role, x, reading) for role in self._first))
        out = self._times("down", inner, own)
        parts = zip(
            self._by_choice(out, order), split(weights, (1,) * self.rule.chosen), strict=True
        )
        return cast(reduce(add, (multiply(part, weight) for part, weight in parts)), x.width)

    def back(self, primals: list[Array], grad: Array, _: Array, wanted: Wanted) -> Grads:
        """Return the gradients of x and of the weights, for that of the sum."""
        x, weights = depends(primals, [grad])
        order = self._order()
        reading, own = self._gather(order, tokens=True), self._gather(order, tokens=False)
        gates = [self._times(role, x, reading) for role in self._first]
        plain = self._product("down", grad, reading, transposed=False)
        shares = cast(expand(self._chosen_of(flatten(weights), order), 1), x.width)
        actives: list[Array] = []

        def gated(*gates: Array) -> Array:
            actives.append(self._gated(*gates))
            return actives[-1]

        grads = vjp(gated, gates, [multiply(plain, shares)])
        sums = total(cast(multiply(actives[0], plain), FLOAT32_BYTES), (-1,), keep=False)
        if "down" in self.biases:
            added = cast(self._bias("down", own), x.width)
            tokens = gathered(grad, order, added.shape)
            sums = add(sums, total(cast(multiply(tokens, added), FLOAT32_BYTES), (-1,), keep=False))
        weights_grad = self._chosen_of(sums, sorted_places(order))
        parts = [
            self._product(role, each, own, transposed=False)
            for role, each in zip(self._first, grads, strict=True)
            if each is not None
        ]
        x_grad = cast(reduce(add, self._by_choice(reduce(add, parts), order)), x.width)
        found = (x_grad, reshape(weights_grad, weights.shape))
        return [each if want else None for each, want in zip(found, wanted, strict=False)]

    @property
    def _first(self) -> tuple[str, ...]:
        return tuple(role for role, _ in self.rule.projections if role != "down")

    def _order(self) -> Array:
        return sorted_places(flatten(self.chosen))

    def _gather(self, order: Array, *, tokens: bool) -> Gather:
        rows = times(order) if tokens else None
        return Gather(self.rule.number, self._chosen_of(flatten(self.chosen), order), rows)

    def _chosen_of(self, x: Array, order: Array) -> Array:
        return gathered(x, order, order.shape)

    def _times(self, role: str, x: Array, gather: Gather) -> Array:
        y = self._product(role, x, gather, transposed=True)
        return y if role not in self.biases else add(y, cast(self._bias(role, gather), y.width))

    def _bias(self, role: str, gather: Gather) -> Array:
        bias = self.biases[role]
        return gathered(bias, gather.matrices, (gather.matrices.shape[0], bias.shape[-1]))

    def _product(self, role: str, x: Array, gather: Gather, *, transposed: bool) -> Array:
        matrix, sequencer = self.matrices[role], self.matrices[role].sequencer
        if not matrix.form.makes_numbers:
            return self._gathered(x, matrix, gather, transposed=transposed)
        before = sequencer.before_next() if transposed else sequencer.before_next_back()
        own = replace(matrix, parts=tuple(depends(matrix.parts, [x, *before])))
        done = sequencer.done if transposed else sequencer.done_back
        return done(self._gathered(x, own, gather, transposed=transposed))

    def _gathered(self, x: Array, matrix: Matrix, gather: Gather, *, transposed: bool) -> Array:
        """Return rows (n, N) of x, each times one of several matrices."""
        rows, inputs = matrix.shape
        each, count, kind = rows // gather.count, gather.matrices.shape[0], self.product
        outputs = each if transposed else inputs
        others = (gather.matrices,) if gather.rows is None else (gather.matrices, gather.rows)
        stack = reshape(matrix.multiplied(kind), (gather.count, each, inputs))
        stack = swapaxes(stack, 1, 2) if transposed else stack
        operation = Operation(
            (cast(expand(x, 1), kind), stack, *others), nbytes=count * outputs * kind
        )
        return cast(squeeze(Array((count, 1, outputs), kind, operation), 1), x.width)

    def _gated(self, *gates: Array) -> Array:
        if self.rule.clamp is not None:
            return clamped(gates[0], self.rule.clamp)
        gate, up = gates
        return gated_activation(gate, up, self.activation)

    def _by_choice(self, rows: Array, order: Array) -> list[Array]:
        places = reshape(sorted_places(order), self.chosen.shape)
        shape = (self.chosen.shape[0], rows.shape[-1])
        found = []
        for choice in range(self.rule.chosen):
            at = squeeze(cut(places, 1, choice, choice + 1), 1)
            found.append(cast(gathered(rows, at, shape), FLOAT32_BYTES))
        return found


def mixed(x: Array, weights: Array, own: FrozenExperts) -> Array:
    """Return the weighted sum (B, S, D) of what the chosen experts make of x (B, S, D)."""
    y = custom(own.forward, own.back, reshape(x, (prod(x.shape[:-1]), x.shape[-1])), weights)
    return reshape(y, x.shape)
