"""A mixture of experts as the MLX engine writes it: all choices at once, sorted by expert.

T tokens, D hidden size, k experts of a token, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod

from edgetune.memory.lazy.arrays import gathered, matmul, sorted_places
from edgetune.memory.lazy.elementwise import add, cast, multiply, sigmoid, times
from edgetune.memory.lazy.expert_updates import Gather, Update, runs_of
from edgetune.memory.lazy.gradients import custom, recomputed, vjp
from edgetune.memory.lazy.graph import Array, Grads, Operation, Wanted
from edgetune.memory.lazy.matrices import Matrix
from edgetune.memory.lazy.pointwise import clamped, gated_activation, plain_activation
from edgetune.memory.lazy.views import (
    concatenate,
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
from edgetune.network.ops import ExpertUpdates
from edgetune.shape import Experts
from edgetune.storage import FLOAT32_BYTES


def shared(x: Array, y: Array, gate: Array) -> Array:
    """Return y (B, S, D) times the sigmoid of a score of x (B, S, D)."""

    def scaled(x: Array, y: Array, gate: Array) -> Array:
        score = matmul(cast(x, FLOAT32_BYTES), swapaxes(cast(gate, FLOAT32_BYTES), 0, 1))
        return multiply(y, cast(sigmoid(score), y.width))

    return recomputed(scaled, x, y, stopped(gate))


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
    updates: ExpertUpdates[Array] = field(default_factory=dict)
    """What is trained beside matrices, by the role of the stack that these are in."""

    @property
    def trained(self) -> list[Array]:
        """A and B of each update, without constants."""
        each = self.updates.values()
        return [part for x in each for part in ((x.b,) if x.fixed else (x.a, x.b))]

    def learning(self, trained: Sequence[Array]) -> FrozenExperts:
        """Return the same with other arrays for those of :attr:`trained`."""
        parts, updates = iter(trained), {}
        for role, x in self.updates.items():
            a = x.a if x.fixed else next(parts)
            updates[role] = replace(x, a=a, b=next(parts))
        return replace(self, updates=updates)

    def _update(self, stack: str) -> Update | None:
        own = self.updates.get(stack)
        return None if own is None else Update.of(own, self.rule.number, self.product)

    def forward(self, x: Array, weights: Array) -> Array:
        """Return the weighted sum (T, D) of what the experts make of x (T, D)."""
        order = self._order()
        reading, own = self._gather(order, tokens=True), self._gather(order, tokens=False)
        entry, down = self._update(self.rule.first_stack), self._update("down")
        low = None if entry is None else entry.low(x, reading)
        inner = self._gated(*self._gates(x, reading, entry, low, own))
        out = self._times("down", inner, own)
        if down is not None:
            out = add(out, cast(down.added(down.low(inner, own), own), out.width))
        parts = zip(
            self._by_choice(out, order), split(weights, (1,) * self.rule.chosen), strict=True
        )
        return cast(reduce(add, (multiply(part, weight) for part, weight in parts)), x.width)

    def back(self, primals: list[Array], grad: Array, _: Array, wanted: Wanted) -> Grads:
        """Return the gradients of x, of the weights and of what is trained, for that of the sum."""
        x, weights = primals[:2]
        order = self._order()
        reading, own = self._gather(order, tokens=True), self._gather(order, tokens=False)
        entry, down = self._update(self.rule.first_stack), self._update("down")
        low = None if entry is None else entry.low(x, reading)
        gates = self._gates(x, reading, entry, low, own)
        plain = self._product("down", grad, reading, transposed=False)
        low_grad = None if down is None else down.low_back(grad, reading)
        if down is not None and low_grad is not None:
            plain = add(plain, cast(down.back(low_grad, own), plain.width))
        shares = cast(expand(self._chosen_of(flatten(weights), order), 1), x.width)
        actives: list[Array] = []

        def gated(*gates: Array) -> Array:
            actives.append(self._gated(*gates))
            return actives[-1]

        grads = vjp(gated, gates, [multiply(plain, shares)])
        runs = runs_of(own.matrices, self.rule.number) if self.updates else None
        learned: dict[str, list[Array]] = {}
        if down is not None and low_grad is not None and runs is not None:
            wide = cast(shares, low_grad.width)
            ahead = multiply(down.low(actives[0], own), wide)
            tokens = gathered(grad, order, (order.shape[0], grad.shape[-1]))
            back = multiply(low_grad, wide)
            learned["down"] = down.learned(actives[0], ahead, back, tokens, runs)
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
        rows = reduce(add, parts)
        if entry is not None and low is not None and runs is not None:
            gates_grad = concatenate([each for each in grads if each is not None], -1)
            low_grad = entry.low_back(gates_grad, own)
            rows = add(rows, cast(entry.back(low_grad, own), rows.width))
            read = gathered(x, order, (order.shape[0], x.shape[-1]))
            learned[self.rule.first_stack] = entry.learned(read, low, low_grad, gates_grad, runs)
        x_grad = cast(reduce(add, self._by_choice(rows, order)), x.width)
        each = self.updates.items()
        found = (
            x_grad, reshape(weights_grad, weights.shape),
            *(grad for role, x in each for grad in learned[role][x.fixed :]),
        )  # fmt: skip
        return [each if want else None for each, want in zip(found, wanted, strict=False)]

    def _gates(
        self, x: Array, reading: Gather, entry: Update | None, low: Array | None, own: Gather
    ) -> list[Array]:
        gates = [self._times(role, x, reading) for role in self._first]
        if entry is None or low is None:
            return gates
        added = cast(entry.added(low, own), x.width)
        columns = [self.rule.in_stack(str(role))[1] for role in self._first]
        spans = [outputs.indices(added.shape[1])[:2] for outputs in columns]
        parts = (cut(added, 1, *span) for span in spans)
        return [add(y, part) for y, part in zip(gates, parts, strict=True)]

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
        if not self.rule.gated:
            return plain_activation(gates[0], self.activation)
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

    def forward(x: Array, weights: Array, *trained: Array) -> Array:
        return own.learning(trained).forward(x, weights)

    def back(primals: list[Array], grad: Array, out: Array, wanted: Wanted) -> Grads:
        primals = depends(primals, [grad])
        return own.learning(primals[2:]).back(primals, grad, out, wanted)

    flat = reshape(x, (prod(x.shape[:-1]), x.shape[-1]))
    return reshape(custom(forward, back, flat, weights, *own.trained), x.shape)
