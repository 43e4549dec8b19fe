"""Cross entropy over the loss tokens alone, a chunk of logits at a time.

N loss tokens, D hidden size, V vocabulary, C tokens of a chunk. The gradient of the hidden
states is computed in the forward pass, so no logits are kept: the peak is the (C, V) float32
logits, whose place their gradient takes (not where they are capped), and (N, D).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.buckets import chunked
from edgetune.data.batch import IGNORED
from edgetune_mlx.matrices import Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The frozen output projection (V, D) and what is done to its logits."""

    weight: Matrix
    bias: mx.array | None
    scale: float
    softcap: float | None

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

    def input_gradient(self, grad: mx.array, logits: mx.array, dtype: mx.Dtype) -> mx.array:
        """Return the gradient (C, D) of the hidden states for that of the logits (C, V)."""
        if self.softcap is not None:
            grad = grad * (1 - (logits / self.softcap).square())
        if self.scale != 1.0:
            grad = grad * self.scale
        return self.weight.back(grad.astype(dtype))


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


@dataclass(frozen=True, slots=True)
class Loss:
    """Losses (N,) and the gradient (N, D) of the hidden states, not yet evaluated.

    After each of the ``stages`` the (C, V) numbers of a chunk have one reader left, whose result
    takes their place, if it is not yet asked for.
    """

    losses: mx.array
    grad: mx.array
    stages: list[mx.array]

    @classmethod
    def of(cls, x: mx.array, wanted: Wanted, head: Head, *, chunk: int, scale: float) -> Loss:
        """Return the losses of x (N, D), and ``scale`` times the gradient of their weighted sum."""
        starts = range(0, len(x), chunk)
        chunks = [_chunk(x, wanted, head, slice(start, start + chunk), scale) for start in starts]
        losses, grads = (mx.concatenate([part[i] for part in chunks]) for i in (-2, -1))
        return cls(losses, grads, [stage for part in chunks for stage in part])

    def evaluate(self) -> None:
        """Evaluate losses and gradient with the logits of one chunk alive."""
        for stage in (*self.stages, self.losses, self.grad):
            mx.eval(stage)


def _chunk(x: mx.array, wanted: Wanted, head: Head, span: slice, scale: float) -> list[mx.array]:
    """Return the stages of some tokens, of which the last are losses (C,) and gradient (C, D)."""
    x, tokens, weights = x[span], wanted.tokens[span], wanted.weights[span]
    logits = head.logits(x)
    highest = logits.max(axis=-1, keepdims=True)
    picked = mx.take_along_axis(logits, tokens[:, None], axis=-1)
    # taken once: they are most of what a processor does here beside the products
    exponentials = mx.exp(logits - highest)
    total = exponentials.sum(axis=-1, keepdims=True)
    losses = (highest + mx.log(total) - picked)[:, 0] * weights
    grad = (exponentials / total).at[mx.arange(len(tokens)), tokens].subtract(1.0)
    found = head.input_gradient(grad, logits, x.dtype)
    # the weights come behind the head, where rows are short
    found = (found * (weights * scale)[:, None]).astype(x.dtype)
    return [highest, picked, losses, found]


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
