"""Cross entropy over the loss tokens alone, a chunk of logits at a time.

N loss tokens, D hidden size, V vocabulary, C tokens of a chunk. The gradient of the hidden
states is computed in the forward pass, so no logits are kept: the peak is one (C, V) buffer of
float32 logits, one slice of the head in the compute type, and (N, D).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune.data.batch import IGNORED

VOCABULARY_SLICE = 8192
"""Rows of the head converted to the compute type at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The frozen output projection (V, D) and what is done to its logits."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def logits(self, x: Tensor) -> Tensor:
        """Return float32 logits (C, V) of hidden states (C, D)."""
        out = torch.empty(len(x), len(self.weight), device=x.device)
        for span, rows in self._slices(x.dtype):
            out[:, span] = (x @ rows.T).float()
        if self.bias is not None:
            out += self.bias.float()
        if self.scale != 1.0:
            out *= self.scale
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out

    def input_gradient(self, logit_gradient: Tensor, logits: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the gradient (C, D) of the hidden states; overwrites ``logit_gradient``."""
        if self.softcap is not None:
            logit_gradient *= 1 - (logits / self.softcap) ** 2
        if self.scale != 1.0:
            logit_gradient *= self.scale
        grad = torch.zeros(len(logits), self.weight.shape[1], device=logits.device)
        for span, rows in self._slices(dtype):
            grad += (logit_gradient[:, span].to(dtype) @ rows).float()
        return grad

    def _slices(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        if self.weight.dtype == dtype:
            yield slice(None), self.weight
            return
        for start in range(0, len(self.weight), VOCABULARY_SLICE):
            span = slice(start, min(start + VOCABULARY_SLICE, len(self.weight)))
            yield span, self.weight[span].to(dtype)


@dataclass(slots=True)
class Sums:
    """Summed loss, loss tokens, and how many of them were predicted as the most probable."""

    loss: float = 0.0
    tokens: int = 0
    correct: int = 0


def loss_positions(targets: Tensor) -> Tensor:
    """Return the flat indices (N,) of the positions under loss in targets (B, S)."""
    return (targets.reshape(-1) != IGNORED).nonzero(as_tuple=True)[0]


def loss_and_gradient(
    x: Tensor, targets: Tensor, head: Head, *, chunk: int, scale: float
) -> tuple[Sums, Tensor]:
    """Return the summed loss of x (N, D) and ``scale`` times its gradient (N, D).

    ``targets`` (N,) holds token ids only; ``chunk`` is in loss tokens.
    """
    sums = Sums()
    grad = torch.empty_like(x)
    for start in range(0, len(x), chunk):
        span = slice(start, start + chunk)
        logits = head.logits(x[span])
        wanted = targets[span].long()[:, None]
        log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
        _add(sums, logits, log_z, wanted)
        probability = (logits - log_z).exp_() if head.softcap else logits.sub_(log_z).exp_()
        minus_one = probability.new_full(wanted.shape, -1.0)
        logit_gradient = probability.scatter_add_(1, wanted, minus_one).mul_(scale)
        grad[span] = head.input_gradient(logit_gradient, logits, x.dtype).to(x.dtype)
    return sums, grad


def loss_only(x: Tensor, targets: Tensor, head: Head, *, chunk: int) -> Sums:
    """Return the summed loss of x (N, D) against targets (N,), without a gradient."""
    sums = Sums()
    for start in range(0, len(x), chunk):
        span = slice(start, start + chunk)
        logits = head.logits(x[span])
        log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
        _add(sums, logits, log_z, targets[span].long()[:, None])
    return sums


def _add(sums: Sums, logits: Tensor, log_z: Tensor, wanted: Tensor) -> None:
    sums.loss += float((log_z - logits.gather(1, wanted)).sum(dtype=torch.float64))
    sums.tokens += len(wanted)
    sums.correct += int((logits.argmax(-1, keepdim=True) == wanted).sum())
