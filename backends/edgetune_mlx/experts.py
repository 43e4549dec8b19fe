"""A mixture of experts: each expert's MLP over the tokens that chose it.

T tokens, D hidden size, E experts, k of them for a token, F width of an expert. All T k choices
are sorted by expert, so that a product has the same number of rows whatever was chosen, and one
kernel multiplies each run of rows with its own matrix. Results are added choice by choice in
float32. Nothing inside of an expert is kept: the way back computes it again. Not yet seen on a Mac:
Metal's kernels that gather.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import mlx.core as mx

from edgetune.network.ops import ExpertUpdates
from edgetune.shape import Experts
from edgetune_mlx.expert_updates import Update, runs_of
from edgetune_mlx.linear import recomputed
from edgetune_mlx.matrices import Gather, Matrix
from edgetune_mlx.pointwise import clamped, gated_activation, plain_activation


def shared(x: mx.array, y: mx.array, gate: mx.array) -> mx.array:
    """Return y (B, S, D) times the sigmoid of a score of x (B, S, D)."""
    return recomputed(_shared)(x, y, mx.stop_gradient(gate))


def _shared(x: mx.array, y: mx.array, gate: mx.array) -> mx.array:
    share = mx.sigmoid(x.astype(mx.float32) @ gate.astype(mx.float32).T)
    return y * share.astype(y.dtype)


@dataclass(frozen=True, slots=True)
class FrozenExperts:
    """The experts of one block: by role the matrices of all, and which tokens chose them."""

    rule: Experts
    activation: str
    matrices: Mapping[str, Matrix]
    biases: Mapping[str, mx.array]
    chosen: mx.array
    updates: ExpertUpdates[mx.array] = field(default_factory=dict)
    """What is trained beside matrices, by the role of the stack that these are in."""

    @property
    def trained(self) -> list[mx.array]:
        """A and B of each update, without constants."""
        each = self.updates.values()
        return [part for x in each for part in ((x.b,) if x.fixed else (x.a, x.b))]

    def learning(self, trained: Sequence[mx.array]) -> FrozenExperts:
        """Return the same with other arrays for those of :attr:`trained`."""
        parts, updates = iter(trained), {}
        for role, x in self.updates.items():
            a = x.a if x.fixed else next(parts)
            updates[role] = replace(x, a=a, b=next(parts))
        return replace(self, updates=updates)

    def update(self, stack: str, x: mx.array) -> Update | None:
        """Return what is trained beside a stack, for choices of the type of x."""
        own = self.updates.get(stack)
        return None if own is None else Update.of(own, self.rule.number, x.dtype)

    def order(self) -> mx.array:
        """Return the choices (T k,) sorted by expert."""
        return mx.argsort(self.chosen.flatten())

    def gather(self, order: mx.array, *, tokens: bool) -> Gather:
        """Return the expert of each sorted choice, and the token that it reads, if it does."""
        rows = order // self.rule.chosen if tokens else None
        return Gather(self.rule.number, self.chosen.flatten()[order], rows)

    def forward(self, x: mx.array, weights: mx.array) -> mx.array:
        """Return the weighted sum (T, D) of what the experts make of x (T, D)."""
        order = self.order()
        reading, own = self.gather(order, tokens=True), self.gather(order, tokens=False)
        entry, down = self.update(self.rule.first_stack, x), self.update("down", x)
        low = None if entry is None else entry.low(x, reading)
        inner = self._gated(*self._gates(x, reading, entry, low, own))
        out = self._times("down", inner, own)
        if down is not None:
            out = out + down.added(down.low(inner, own), own).astype(out.dtype)
        parts = zip(
            self._by_choice(out, order), mx.split(weights, self.rule.chosen, -1), strict=True
        )
        return reduce(mx.add, (part * weight for part, weight in parts)).astype(x.dtype)

    def back(self, x: mx.array, weights: mx.array, grad: mx.array) -> tuple[mx.array, ...]:
        """Return the gradients of x, of the weights and of what is trained, for that of the sum."""
        order = self.order()
        reading, own = self.gather(order, tokens=True), self.gather(order, tokens=False)
        entry, down = self.update(self.rule.first_stack, x), self.update("down", x)
        low = None if entry is None else entry.low(x, reading)
        gates = self._gates(x, reading, entry, low, own)
        plain = self.matrices["down"].gathered_back(grad, reading)
        low_grad = None if down is None else down.low_back(grad, reading)
        if down is not None and low_grad is not None:
            plain = plain + down.back(low_grad, own).astype(plain.dtype)
        shares = weights.flatten()[order][:, None].astype(x.dtype)
        (active,), grads = mx.vjp(self._gated, gates, [plain * shares])
        runs = runs_of(own.matrices, self.rule.number) if self.updates else None
        learned: dict[str, list[mx.array]] = {}
        if down is not None and low_grad is not None and runs is not None:
            wide, tokens = shares.astype(low_grad.dtype), grad[order // self.rule.chosen]
            ahead = down.low(active, own) * wide
            learned["down"] = down.learned(active, ahead, low_grad * wide, tokens, runs)
        sums = (active * plain).astype(mx.float32).sum(-1)
        if "down" in self.biases:
            added = self.biases["down"][own.matrices].astype(x.dtype)
            sums = sums + (grad[order // self.rule.chosen] * added).astype(mx.float32).sum(-1)
        weights_grad = sums[mx.argsort(order)].reshape(weights.shape)
        parts = zip(self._first, grads, strict=True)
        x_grad = reduce(mx.add, (self.matrices[x].gathered_back(each, own) for x, each in parts))
        if entry is not None and low is not None and runs is not None:
            gates_grad = grads[0] if len(grads) == 1 else mx.concatenate(grads, axis=-1)
            low_grad = entry.low_back(gates_grad, own)
            x_grad = x_grad + entry.back(low_grad, own).astype(x_grad.dtype)
            read = x[order // self.rule.chosen]
            learned[self.rule.first_stack] = entry.learned(read, low, low_grad, gates_grad, runs)
        x_grad = reduce(mx.add, self._by_choice(x_grad, order)).astype(x.dtype)
        each = self.updates.items()
        return x_grad, weights_grad, *(y for k, u in each for y in learned[k][u.fixed :])

    @property
    def _first(self) -> tuple[str, ...]:
        """The roles of the projections that read what comes in."""
        return tuple(role for role, _ in self.rule.projections if role != "down")

    def _gates(
        self, x: mx.array, reading: Gather, entry: Update | None, low: mx.array | None, own: Gather
    ) -> list[mx.array]:
        """Return what the first projections make (n, F) of x, with what an update adds."""
        gates = [self._times(role, x, reading) for role in self._first]
        if entry is None or low is None:
            return gates
        added = entry.added(low, own).astype(x.dtype)
        columns = [self.rule.in_stack(role)[1] for role in self._first]
        return [y + added[:, outputs] for y, outputs in zip(gates, columns, strict=True)]

    def _times(self, role: str, x: mx.array, gather: Gather) -> mx.array:
        y = self.matrices[role].gathered(x, gather)
        if role not in self.biases:
            return y
        return y + self.biases[role][gather.matrices].astype(y.dtype)

    def _gated(self, *gates: mx.array) -> mx.array:
        """Return what the last projection reads (T k, F) of what the first ones made."""
        if self.rule.clamp is not None:
            return clamped(gates[0], self.rule.clamp)
        if not self.rule.gated:
            return plain_activation(gates[0], self.activation)
        gate, up = gates
        return gated_activation(gate, up, self.activation)

    def _by_choice(self, sorted_rows: mx.array, order: mx.array) -> Iterator[mx.array]:
        """Yield for each choice of a token its row (T, D) in float32."""
        places = mx.argsort(order).reshape(-1, self.rule.chosen)
        for choice in range(self.rule.chosen):
            yield sorted_rows[places[:, choice]].astype(mx.float32)


def mixed(x: mx.array, weights: mx.array, own: FrozenExperts) -> mx.array:
    """Return the weighted sum (B, S, D) of what the chosen experts make of x (B, S, D)."""

    def forward(x: mx.array, weights: mx.array, *trained: mx.array) -> mx.array:
        return own.learning(trained).forward(x, weights)

    custom: Any = mx.custom_function(forward)

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(primals: Any, cotangent: mx.array, _: Any) -> Any:
        x, weights, *trained = mx.depends(list(primals), [cotangent])
        return own.learning(trained).back(x, weights, cotangent)

    y: mx.array = custom(x.reshape(-1, x.shape[-1]), weights, *own.trained)
    return y.reshape(x.shape)
