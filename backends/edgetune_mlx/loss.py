"""Cross entropy over the loss tokens alone, a chunk of logits at a time.

N loss tokens, D hidden size, V vocabulary, C tokens of a chunk. The gradient of the hidden
states is computed in the forward pass, so no logits are kept: the peak is the (C, V) float32
logits, whose place their gradient takes (not where they are capped), and (N, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.buckets import chunked
from edgetune.data.batch import IGNORED
from edgetune.network.adaptation import Adaptation
from edgetune_mlx.matrices import Matrix, Plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The output projection (V, D) and what is done to its logits."""

    weight: Matrix
    bias: mx.array | None
    scale: float
    softcap: float | None
    trained: bool = False

    def of(self, method: Adaptation[mx.array]) -> Head:
        """Return the head that a method trains, this one if it trains none."""
        weight = method.head
        if weight is None:
            return self
        return replace(self, weight=Matrix(Plain(), {"values": weight}), trained=True)

    def logits_of_rows(self, x: mx.array, method: Adaptation[mx.array]) -> mx.array:
        """Return float32 logits (B, V) of hidden states (B, D), each by its row's adaptation."""
        each = method.of_rows(len(x))
        if all(one.head is each[0].head for one in each):
            return self.of(each[0]).logits(x)
        return mx.concatenate([self.of(one).logits(x[i : i + 1]) for i, one in enumerate(each)])

    def logits(self, x: mx.array) -> mx.array:
        """Return float32 logits (C, V) of hidden states (C, D)."""
        out = self.weight.times(x).astype(mx.float32)
        if self.bias is not None:
            out = out + self.bias.astype(mx.float32)
        if self.scale != 1.0:
            out = out * self.scale
        if self.softcap is not None:
            out = mx.tanh(out / self.softcap) * self.softcap
        return out

    def product_gradient(self, grad: mx.array, logits: mx.array, dtype: mx.Dtype) -> mx.array:
        """Return the gradient (C, V) of the product alone for that of the logits (C, V)."""
        if self.softcap is not None:
            grad = grad * (1 - (logits / self.softcap).square())
        if self.scale != 1.0:
            grad = grad * self.scale
        return grad.astype(dtype)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The loss tokens of a micro-batch, filled up to whole chunks.

    ``at`` (N,) are flat positions, ``tokens`` (N,) the targets, ``weights`` (N,) 1 for loss
    tokens and 0 for what fills up; ``count`` is the number of loss tokens, which come first.
    """

    at: mx.array
    tokens: mx.array
    weights: mx.array
    count: int

    @classmethod
    def of(cls, targets: NDArray[np.int32], chunk: int) -> Wanted:
        """Return the positions under loss in targets (B, S)."""
        flat = targets.reshape(-1)
        at = np.flatnonzero(flat != IGNORED)
        padding = min(flat.size, chunked(max(1, len(at)), chunk)) - len(at)
        filled = np.pad(at, (0, padding))
        weights = np.pad(np.ones(len(at), np.float32), (0, padding))
        tokens = np.where(weights > 0, flat[filled], 0)
        return cls(mx.array(filled), mx.array(tokens), mx.array(weights), len(at))

    def weighed(self, weights: NDArray[np.float32]) -> Wanted:
        """Return the same with weights of the loss tokens (count,)."""
        filling = (0, len(self.tokens) - self.count)
        return replace(self, weights=mx.array(np.pad(weights, filling)))


@dataclass(frozen=True, slots=True)
class Parts:
    """The loss tokens of a micro-batch, those of each part of its positions by themselves.

    ``order`` (count,) has for each of them, row by row, its place among those of all parts.
    """

    each: list[Wanted]
    order: NDArray[np.intp]

    @classmethod
    def of(cls, targets: NDArray[np.int32], chunk: int, spans: Sequence[slice]) -> Parts:
        """Return those of targets (B, S) in parts of positions."""
        at = np.arange(targets.size).reshape(targets.shape)
        places = [at[:, span][targets[:, span] != IGNORED] for span in spans]
        each = [Wanted.of(targets[:, span], chunk) for span in spans]
        return cls(each, np.argsort(np.concatenate(places)))

    def row_by_row(self, losses: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the losses (count,) of all parts, of which those of each are given."""
        return np.concatenate(losses)[self.order]

    def weighed(self, weights: NDArray[np.float32]) -> Parts:
        """Return the same with weights of the loss tokens (count,), row by row."""
        own = np.empty_like(weights)
        own[self.order] = weights
        ends = np.cumsum([one.count for one in self.each])[:-1]
        pairs = zip(self.each, np.split(own, ends), strict=True)
        return replace(self, each=[one.weighed(some) for one, some in pairs])


@dataclass(slots=True)
class Sums:
    """Summed loss, loss tokens, and how many of them were predicted as the most probable.

    Training does not count the last.
    """

    loss: float = 0.0
    tokens: int = 0
    correct: int = 0

    @classmethod
    def of(cls, losses: mx.array, count: int, correct: mx.array | None = None) -> Sums:
        """Return the sums over the losses (N,), added up in float64."""
        loss = float(np.asarray(losses, np.float64).sum())
        return cls(loss, count, 0 if correct is None else int(np.asarray(correct).sum()))

    def add(self, other: Sums) -> None:
        """Add those of other tokens."""
        self.loss += other.loss
        self.tokens += other.tokens
        self.correct += other.correct


@dataclass(frozen=True, slots=True)
class Loss:
    """Losses (N,) and the gradient (N, D) of the hidden states, not yet evaluated.

    The first of the ``stages`` are the hidden states, so that nothing of a norm is there beside
    logits. After each of the others the (C, V) numbers of a chunk have one reader left, whose
    result takes their place, if it is not yet asked for. ``head_grad`` (V, D) is that of a trained
    head, the last of its sums over the chunks, of which the others are among the stages.
    """

    losses: mx.array
    grad: mx.array
    stages: list[mx.array]
    head_grad: mx.array | None = None

    @classmethod
    def of(
        cls, x: mx.array, wanted: Wanted, head: Head, *, chunk: int, scale: float,
        before: mx.array | None = None,
    ) -> Loss:  # fmt: skip
        """Return the losses of x (N, D), and ``scale`` times the gradient of their weighted sum.

        ``before`` is the gradient of a trained head so far, to which that of x is added.
        """
        losses, grads, stages, summed = [], [], [x], before
        for start in range(0, len(x), chunk):
            part = _chunk(x, wanted, head, slice(start, start + chunk), scale)
            losses.append(part.stages[-2])
            grads.append(part.stages[-1])
            stages += part.stages
            if part.head_grad is not None:
                summed = part.head_grad if summed is None else summed + part.head_grad
                stages.append(summed)
        return cls(mx.concatenate(losses), mx.concatenate(grads), stages, summed)

    def evaluate(self) -> None:
        """Evaluate losses and gradient with the logits of one chunk alive."""
        self.stages.reverse()
        while self.stages:
            mx.eval(self.stages.pop())  # a sum makes room for the next one
        mx.eval(self.losses)
        mx.eval(self.grad)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One chunk's stages, of which the last are losses (C,) and gradient (C, D).

    ``head_grad`` (V, D) is its gradient of a trained head.
    """

    stages: list[mx.array]
    head_grad: mx.array | None


def _chunk(x: mx.array, wanted: Wanted, head: Head, span: slice, scale: float) -> _Chunk:
    """Return the stages of some tokens."""
    x, tokens, weights = x[span], wanted.tokens[span], wanted.weights[span]
    logits = head.logits(x)
    highest = logits.max(axis=-1, keepdims=True)
    picked = mx.take_along_axis(logits, tokens[:, None], axis=-1)
    # taken once: they are most of what a processor does here beside the products
    exponentials = mx.exp(logits - highest)
    total = exponentials.sum(axis=-1, keepdims=True)
    losses = (highest + mx.log(total) - picked)[:, 0] * weights
    grad = (exponentials / total).at[mx.arange(len(tokens)), tokens].subtract(1.0)
    grad = head.product_gradient(grad, logits, x.dtype)
    # the weights come behind the head, where rows are short
    factors = (weights * scale)[:, None]
    found = (head.weight.back(grad) * factors).astype(x.dtype)
    head_grad = None
    if head.trained:
        head_grad = (grad.T @ (x * factors).astype(x.dtype)).astype(mx.float32)
    return _Chunk([highest, picked, losses, found], head_grad)


def losses_only(x: mx.array, wanted: Wanted, head: Head, *, chunk: int) -> Sums:
    """Return the summed loss of x (N, D) and how many targets were the most probable token."""
    losses, correct = [], []
    for start in range(0, len(x), chunk):
        span = slice(start, start + chunk)
        tokens, weights = wanted.tokens[span], wanted.weights[span]
        logits = head.logits(x[span])
        picked = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
        losses.append((mx.logsumexp(logits, axis=-1) - picked) * weights)
        correct.append((mx.argmax(logits, axis=-1) == tokens) * weights)
        mx.eval(losses[-1], correct[-1])
    return Sums.of(mx.concatenate(losses), wanted.count, mx.concatenate(correct))


def token_losses(x: mx.array, wanted: Wanted, head: Head, *, chunk: int) -> NDArray[np.float32]:
    """Return the losses of the loss tokens, (count,), of x (N, D)."""
    losses = []
    for start in range(0, len(x), chunk):
        span = slice(start, start + chunk)
        logits = head.logits(x[span])
        picked = mx.take_along_axis(logits, wanted.tokens[span][:, None], axis=-1)[:, 0]
        losses.append(mx.logsumexp(logits, axis=-1) - picked)
        mx.eval(losses[-1])
    return np.array(mx.concatenate(losses)[: wanted.count])
