"""Cross entropy over the loss tokens alone, a chunk of logits at a time.

N loss tokens, D hidden size, V vocabulary, C tokens of a chunk. The gradient of the hidden
states is computed in the forward pass, so no logits are kept: the peak is the (C, V) float32
logits, whose place their gradient takes, and (N, D).
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.data.batch import IGNORED
from edgetune_mlx.matrices import Matrix

STEPS = 8
"""A chunk that is not full is as long as a multiple of this part: shapes stay few."""


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
    tokens and 0 for what fills up; ``count`` is the number of loss tokens.
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
        unit = max(1, chunk // STEPS)
        padding = min(flat.size, max(unit, -(-len(at) // unit) * unit)) - len(at)
        filled = np.pad(at, (0, padding))
        weights = np.pad(np.ones(len(at), np.float32), (0, padding))
        tokens = np.where(weights > 0, flat[filled], 0)
        return cls(mx.array(filled), mx.array(tokens), mx.array(weights), len(at))


@dataclass(slots=True)
class Sums:
    """Summed loss, loss tokens, and how many of them were predicted as the most probable."""

    loss: float = 0.0
    tokens: int = 0
    correct: int = 0

    @classmethod
    def of(cls, losses: mx.array, correct: mx.array, count: int) -> Sums:
        """Return the sums over the losses (N,), added up in float64."""
        loss = float(np.asarray(losses, np.float64).sum())
        return cls(loss, count, int(np.asarray(correct).sum()))


def losses_and_gradient(
    x: mx.array, wanted: Wanted, head: Head, *, chunk: int, scale: float, now: bool
) -> tuple[mx.array, mx.array, mx.array]:
    """Return losses (N,), correctness (N,) and ``scale`` times the gradient (N, D) for x (N, D).

    ``now`` evaluates each chunk by itself: one buffer of logits and one of their gradients live.
    Otherwise chunks are ordered, but MLX may prepare some operations ahead.
    """
    parts: list[tuple[mx.array, mx.array, mx.array]] = []
    for start in range(0, len(x), chunk):
        span = slice(start, start + chunk)
        part = x[span]
        if parts and not now:
            (part,) = mx.depends([part], list(parts[-1]))
        parts.append(_chunk(part, wanted.tokens[span], wanted.weights[span], head, scale))
        if now:
            losses, correct, grad = parts[-1]
            mx.eval(losses, correct)  # nothing but the gradient has use for the logits then
            mx.eval(grad)
    losses, correct, grads = (mx.concatenate(list(found)) for found in zip(*parts, strict=True))
    return losses, correct, grads


def _chunk(
    x: mx.array, tokens: mx.array, weights: mx.array, head: Head, scale: float
) -> tuple[mx.array, mx.array, mx.array]:
    logits, log_z, losses, correct = _losses(x, tokens, weights, head)
    # all else that reads the logits comes first, so that their gradient takes their place
    (logits,) = mx.depends([logits], [losses, correct])
    factor = weights * scale
    probability = mx.exp(logits - log_z) * factor[:, None]
    grad = probability.at[mx.arange(len(tokens)), tokens].subtract(factor)
    return losses, correct, head.input_gradient(grad, logits, x.dtype)


def losses_only(x: mx.array, wanted: Wanted, head: Head, *, chunk: int) -> Sums:
    """Return the summed loss of x (N, D), without a gradient."""
    losses, correct = [], []
    for start in range(0, len(x), chunk):
        span = slice(start, start + chunk)
        _, _, loss, right = _losses(x[span], wanted.tokens[span], wanted.weights[span], head)
        mx.eval(loss, right)
        losses.append(loss)
        correct.append(right)
    return Sums.of(mx.concatenate(losses), mx.concatenate(correct), wanted.count)


def _losses(
    x: mx.array, tokens: mx.array, weights: mx.array, head: Head
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Return logits (C, V), their log-sum (C, 1), losses (C,) and correctness (C,) in {0, 1}."""
    logits = head.logits(x)
    log_z = mx.logsumexp(logits, axis=-1, keepdims=True)
    picked = mx.take_along_axis(logits, tokens[:, None], axis=-1)
    losses = (log_z - picked)[:, 0] * weights
    correct = (mx.argmax(logits, axis=-1) == tokens) * weights
    return logits, log_z, losses, correct
