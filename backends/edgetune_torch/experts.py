"""A mixture of experts: each expert's MLP over the tokens that chose it.

T tokens, D hidden size, E experts, k of them for a token, F width of an expert, n rows at a time.
Tokens are sorted by expert. An expert computes a piece of its rows at a time
(:meth:`edgetune.shape.Experts.rows`), filled up to one of the few row counts of products, and adds
its results in float32; each row is met once in a piece, so that the order of sums is always the
same. Nothing inside of an expert is kept: the way back computes it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from edgetune.buckets import bucket
from edgetune.shape import Clamp, Experts
from edgetune_torch import clamped
from edgetune_torch.expert_updates import Grads, Updates
from edgetune_torch.linear import Low, multiplied, multiplied_back
from edgetune_torch.matrices import Matrix
from edgetune_torch.pointwise import activation as activated


class Shared(torch.autograd.Function):
    """``y * sigmoid(x g^T)`` for one score a token; saves y and the shares."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        """Return shares of y (B, S, D)."""
        share = (x.float() @ gate.float().T).sigmoid_()
        ctx.save_for_backward(y, share)
        ctx.gate, ctx.dtype = gate, x.dtype
        return y * share.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of x and of y."""
        y, share = ctx.saved_tensors
        score = (grads[0] * y).float().sum(-1, keepdim=True)
        score.mul_(share * (1 - share))
        return (score @ ctx.gate.float()).to(ctx.dtype), grads[0] * share.to(y.dtype), None


def shared(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Return y (B, S, D) times the sigmoid of a score of x (B, S, D)."""
    found: Tensor = Shared.apply(x, y, gate)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True, slots=True)
class FrozenExperts:
    """The experts of one block; matrices and biases by the keys of their projections."""

    rule: Experts
    activation: str
    matrices: Mapping[str, Matrix]
    biases: Mapping[str, Tensor]
    updates: Updates = field(default_factory=dict)
    """What is trained beside matrices, by the role of the stack that these are in."""

    def times(self, role: str, expert: int, x: Tensor, low: Low | None) -> Tensor:
        """Return a projection (n, outputs) of x (n, inputs), and what an update adds."""
        key = f"{role}.{expert}"
        own = None if low is None else low.columns(self.rule.in_stack(role)[1])
        return multiplied(x, self.matrices[key], self.biases.get(key), own)

    def back(self, role: str, expert: int, grad: Tensor, low: Low | None = None) -> Tensor:
        """Return the gradient (n, inputs) of a projection's input."""
        return multiplied_back(grad, self.matrices[f"{role}.{expert}"], low)

    def low(self, stack: str, expert: int, x: Tensor) -> Low | None:
        """Return what an update adds to the projections of x (n, K) that it is of, if there is one."""
        update = self.updates.get(stack)
        return None if update is None else update.ahead(expert, x, self._any(expert))

    def _any(self, expert: int) -> Matrix:
        """Return a matrix, whose scratch memory small products use, too."""
        return self.matrices[f"down.{expert}"]

    def inner(self, expert: int, x: Tensor) -> Tensor:
        """Return what the expert's last projection reads (n, F)."""
        low = self.low(self.rule.first_stack, expert, x)
        if self.rule.clamp is not None:
            return clamped.gated(self.times("gate_up", expert, x, low), self.rule.clamp)
        if not self.rule.gated:
            return activated(self.times("up", expert, x, low), self.activation)
        gate, up = self.times("gate", expert, x, low), self.times("up", expert, x, low)
        return activated(gate, self.activation).mul_(up)

    def inner_back(self, expert: int, x: Tensor, grad: Tensor, share: Tensor) -> Piece:
        """Return the gradients of x and of its weights (n,) for that of the output (n, D)."""
        if self.rule.clamp is not None:
            return self._clamped_back(expert, x, grad, share, self.rule.clamp)
        if not self.rule.gated:
            return self._ungated_back(expert, x, grad, share)
        low = self.low("gate_up", expert, x)
        gate, up = self.times("gate", expert, x, low), self.times("up", expert, x, low)
        down = self._low_back("down", expert, ((slice(None), grad),))
        inner_grad = self.back("down", expert, grad, down)
        with torch.enable_grad():
            leaf = gate.requires_grad_()
            active = activated(leaf, self.activation)
        weights_grad = (inner_grad * active.detach()).mul_(up).float().sum(-1)
        if down is not None:
            self._learn_down(expert, active.detach() * up, grad, share, down)
        del down
        inner_grad.mul_(share.to(grad.dtype)[:, None])
        (gate_grad,) = torch.autograd.grad(active, leaf, inner_grad * up)
        del gate, leaf, up
        up_grad = inner_grad.mul_(active.detach())
        del active, inner_grad
        entry = None
        if low is not None:
            size = self.rule.size
            grads = ((slice(0, size), gate_grad), (slice(size, None), up_grad))
            entry = self._learn_first(expert, x, grads, low)
            del grads
        x_grad = self.back("gate", expert, gate_grad, entry)
        del gate_grad
        return Piece(x_grad.add_(self.back("up", expert, up_grad)), weights_grad)

    def _low_back(self, stack: str, expert: int, grads: Grads) -> Low | None:
        update = self.updates.get(stack)
        return None if update is None else update.back(expert, grads, self._any(expert))

    def _learn_first(self, expert: int, x: Tensor, grads: Grads, low: Low) -> Low:
        """Add the gradients of what updates what reads x; return what it adds to that of x."""
        update, matrix = self.updates[self.rule.first_stack], self._any(expert)
        back = update.back(expert, grads, matrix)
        update.learn(expert, x, low.rows, back.rows, grads, matrix)
        return back

    def _learn_down(
        self, expert: int, inner: Tensor, grad: Tensor, share: Tensor, down: Low
    ) -> None:
        """Add the gradients of what updates the last projection of inner (n, F)."""
        update, matrix = self.updates["down"], self._any(expert)
        ahead = update.ahead(expert, inner, matrix).rows
        shares = share.to(ahead.dtype)[:, None]
        grads = ((slice(None), grad),)
        update.learn(expert, inner, ahead.mul_(shares), down.rows * shares, grads, matrix)

    def _ungated_back(self, expert: int, x: Tensor, grad: Tensor, share: Tensor) -> Piece:
        low = self.low("up", expert, x)
        up = self.times("up", expert, x, low)
        down = self._low_back("down", expert, ((slice(None), grad),))
        inner_grad = self.back("down", expert, grad, down)
        with torch.enable_grad():
            active = activated(up.requires_grad_(), self.activation)
        inner = active.detach()
        weights_grad = (inner_grad * inner).float().sum(-1)
        if down is not None:
            self._learn_down(expert, inner, grad, share, down)
        del down, inner
        inner_grad.mul_(share.to(grad.dtype)[:, None])
        (up_grad,) = torch.autograd.grad(active, up, inner_grad)
        del up, active, inner_grad
        entry = None
        if low is not None:
            entry = self._learn_first(expert, x, ((slice(None), up_grad),), low)
        return Piece(self.back("up", expert, up_grad, entry), weights_grad)

    def _clamped_back(
        self, expert: int, x: Tensor, grad: Tensor, share: Tensor, clamp: Clamp
    ) -> Piece:
        low = self.low("gate_up", expert, x)
        gate_up = self.times("gate_up", expert, x, low)
        down = self._low_back("down", expert, ((slice(None), grad),))
        inner_grad = self.back("down", expert, grad, down)
        inner = clamped.gated(gate_up, clamp)
        if down is not None:
            self._learn_down(expert, inner, grad, share, down)
        del down
        weights_grad = inner.mul_(inner_grad).float().sum(-1)
        del inner
        bias = self.biases.get(f"down.{expert}")
        if bias is not None:
            weights_grad += (grad @ bias.to(grad.dtype)).float()
        inner_grad.mul_(share.to(grad.dtype)[:, None])
        gate_up_grad = clamped.gated_back(gate_up, inner_grad, clamp)
        del gate_up, inner_grad
        entry = None
        if low is not None:
            entry = self._learn_first(expert, x, ((slice(None), gate_up_grad),), low)
        return Piece(self.back("gate_up", expert, gate_up_grad, entry), weights_grad)


@dataclass(frozen=True, slots=True)
class Piece:
    """Gradients of some rows: of what an expert read (n, D) and of its weights (n,)."""

    x: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of one expert: places among all choices (T k), and tokens, filled up."""

    expert: int
    places: Tensor
    tokens: Tensor
    count: int
    """Those that are not there to fill up."""


class Mixture(torch.autograd.Function):
    """The weighted sum of the chosen experts' outputs; saves its inputs.

    ``trained`` are A and B of each update, which autograd knows by them alone.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, chosen: Tensor, own: FrozenExperts, *trained: Tensor
    ) -> Tensor:
        """Return the sum (B, S, D) of what experts make of x (B, S, D)."""
        ctx.save_for_backward(x, weights, chosen, *trained)
        ctx.own = own
        flat, shares = x.flatten(0, -2), weights.flatten()
        out = torch.zeros(flat.shape, dtype=torch.float32, device=x.device)
        for rows in _pieces(chosen, own.rule):
            _add(out, flat, shares, rows, own)
        return out.to(x.dtype).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of the weights and of what is trained."""
        x, weights, chosen, *_ = ctx.saved_tensors
        own, wanted = ctx.own, ctx.needs_input_grad[4:]
        updates = {
            role: update.learning(a=wanted[2 * i], b=wanted[2 * i + 1])
            for i, (role, update) in enumerate(own.updates.items())
        }
        own = replace(own, updates=updates)
        flat, grad, shares = x.flatten(0, -2), grads[0].flatten(0, -2), weights.flatten()
        x_grad = torch.zeros(flat.shape, dtype=torch.float32, device=x.device)
        weights_grad = torch.zeros_like(shares)
        for rows in _pieces(chosen, own.rule):
            _add_back(x_grad, weights_grad, flat, grad, shares, rows, own)
        learned = (part for update in updates.values() for part in (update.a_grad, update.b_grad))
        x_grad = x_grad.to(x.dtype).view(x.shape)
        return x_grad, weights_grad.view(weights.shape), None, None, *learned


def mixed(x: Tensor, weights: Tensor, chosen: Tensor, own: FrozenExperts) -> Tensor:
    """Return the weighted sum (B, S, D) of what the chosen experts make of x (B, S, D)."""
    trained = (part for each in own.updates.values() for part in (each.own.a, each.own.b))
    y: Tensor = Mixture.apply(x, weights, chosen, own, *trained)  # type: ignore[no-untyped-call]
    return y


def _add(out: Tensor, x: Tensor, shares: Tensor, rows: Rows, own: FrozenExperts) -> None:
    inner = own.inner(rows.expert, x[rows.tokens])
    found = own.times("down", rows.expert, inner, own.low("down", rows.expert, inner)).float()
    del inner
    found.mul_(shares[rows.places][:, None])
    out.index_add_(0, rows.tokens[: rows.count], found[: rows.count])


def _add_back(
    x_grad: Tensor,
    weights_grad: Tensor,
    x: Tensor,
    grad: Tensor,
    shares: Tensor,
    rows: Rows,
    own: FrozenExperts,
) -> None:
    share = shares[rows.places]
    if own.updates:
        share[rows.count :] = 0  # rows that fill up teach nothing
    found = own.inner_back(rows.expert, x[rows.tokens], grad[rows.tokens], share)
    x_grad.index_add_(0, rows.tokens[: rows.count], found.x[: rows.count].float())
    weights_grad.index_copy_(0, rows.places[: rows.count], found.weights[: rows.count])


def _pieces(chosen: Tensor, rule: Experts) -> Iterator[Rows]:
    """Yield the rows of one expert after the other, as many as are computed at a time."""
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=rule.number).tolist()
    most, start = rule.rows(len(chosen)), 0
    for expert, count in enumerate(counts):
        for first in range(start, start + count, most):
            own = min(most, start + count - first)
            filled = min(most, bucket(own))
            places = order[first : first + own]
            if filled > own:
                places = torch.cat((places, places[-1:].expand(filled - own)))
            yield Rows(expert, places, places // rule.chosen, own)
        start += count
