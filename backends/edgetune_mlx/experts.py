"""A mixture of experts: each expert's MLP over the tokens that chose it.

T tokens, D hidden size, E experts, k of them for a token, F width of an expert. All T k choices
are sorted by expert, so that a product has the same number of rows whatever was chosen, and one
kernel multiplies each run of rows with its own matrix. Results are added choice by choice in
float32. Nothing inside of an expert is kept: the way back computes it again. Not yet seen on a Mac:
Metal's kernels that gather.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import mlx.core as mx

from edgetune.shape import Experts
from edgetune_mlx.linear import recomputed
from edgetune_mlx.matrices import Gather, Matrix
from edgetune_mlx.pointwise import clamped, gated_activation


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
        inner = self._gated(*(self._times(role, x, reading) for role in self._first))
        out = self._times("down", inner, own)
        parts = zip(
            self._by_choice(out, order), mx.split(weights, self.rule.chosen, -1), strict=True
        )
        return reduce(mx.add, (part * weight for part, weight in parts)).astype(x.dtype)

    def back(self, x: mx.array, weights: mx.array, grad: mx.array) -> tuple[mx.array, mx.array]:
        """Return the gradients of x and of the weights, for that of the sum."""
        order = self.order()
        reading, own = self.gather(order, tokens=True), self.gather(order, tokens=False)
        gates = [self._times(role, x, reading) for role in self._first]
        plain = self.matrices["down"].gathered_back(grad, reading)
        shares = weights.flatten()[order][:, None].astype(x.dtype)
        (active,), grads = mx.vjp(self._gated, gates, [plain * shares])
        sums = (active * plain).astype(mx.float32).sum(-1)
        if "down" in self.biases:
            added = self.biases["down"][own.matrices].astype(x.dtype)
            sums = sums + (grad[order // self.rule.chosen] * added).astype(mx.float32).sum(-1)
        weights_grad = sums[mx.argsort(order)].reshape(weights.shape)
        parts = zip(self._first, grads, strict=True)
        x_grad = reduce(mx.add, (self.matrices[x].gathered_back(each, own) for x, each in parts))
        return reduce(mx.add, self._by_choice(x_grad, order)).astype(x.dtype), weights_grad

    @property
    def _first(self) -> tuple[str, ...]:
        """The roles of the projections that read what comes in."""
        return tuple(role for role, _ in self.rule.projections if role != "down")

    def _times(self, role: str, x: mx.array, gather: Gather) -> mx.array:
        y = self.matrices[role].gathered(x, gather)
        if role not in self.biases:
            return y
        return y + self.biases[role][gather.matrices].astype(y.dtype)

    def _gated(self, *gates: mx.array) -> mx.array:
        """Return what the last projection reads (T k, F) of what the first ones made."""
        if self.rule.clamp is not None:
            return clamped(gates[0], self.rule.clamp)
        gate, up = gates
        return gated_activation(gate, up, self.activation)

    def _by_choice(self, sorted_rows: mx.array, order: mx.array) -> Iterator[mx.array]:
        """Yield for each choice of a token its row (T, D) in float32."""
        places = mx.argsort(order).reshape(-1, self.rule.chosen)
        for choice in range(self.rule.chosen):
            yield sorted_rows[places[:, choice]].astype(mx.float32)


def mixed(x: mx.array, weights: mx.array, own: FrozenExperts) -> mx.array:
    """Return the weighted sum (B, S, D) of what the chosen experts make of x (B, S, D)."""
    custom: Any = mx.custom_function(own.forward)

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(primals: Any, cotangent: mx.array, _: Any) -> Any:
        x, weights = mx.depends(list(primals), [cotangent])
        return own.back(x, weights, cotangent)

    y: mx.array = custom(x.reshape(-1, x.shape[-1]), weights)
    return y.reshape(x.shape)
