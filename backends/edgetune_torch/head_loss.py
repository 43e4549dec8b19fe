"""The end of a pass: final norm, head and loss behind the last block, some loss tokens at a time.

B rows, S positions, D hidden size, N loss tokens, C of them in a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.data.answers import Weigh
from edgetune.network.adaptation import Adaptation
from edgetune_torch.decoder import Decoder
from edgetune_torch.loss import (
    Head,
    Sums,
    loss_and_gradient,
    loss_only,
    loss_positions,
    token_losses,
)
from edgetune_torch.malloc import trim


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some positions under loss: flat indices and targets (C,); those behind ``count`` fill up."""

    at: Tensor
    targets: Tensor
    count: int


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """The losses of the last block's output, with ``chunk`` tokens' logits alive at once."""

    decoder: Decoder
    head: Head
    chunk: int

    def summed(self, x: Tensor, targets: Tensor, method: Adaptation[Tensor]) -> Sums:
        """Return the summed loss of x (B, S, D), for targets (B, S)."""
        sums, flat, head = Sums(), x.flatten(0, 1), self.head.of(method)
        for chunk in self._chunks(targets):
            normed = self.decoder.final_norm(flat[chunk.at], method)
            sums.add(loss_only(normed, chunk.targets, chunk.count, head))
            del normed
        return sums

    def of_tokens(
        self, x: Tensor, targets: Tensor, method: Adaptation[Tensor]
    ) -> NDArray[np.float32]:
        """Return the loss of each loss token of x (B, S, D), in order, (N,)."""
        return self._of_tokens(x, self._chunks(targets), method)

    def gradient(
        self,
        x: Tensor,
        targets: Tensor,
        method: Adaptation[Tensor],
        scale: float,
        weigh: Weigh | None,
    ) -> tuple[Sums, Tensor]:
        """Return the loss and the gradient (B, S, D) of x (B, S, D); add those of what is trained."""
        if x.device.type == "cpu":
            trim()  # more than ever lives from now on
        chunks, sums, flat = self._chunks(targets), Sums(), x.flatten(0, 1)
        counts, head = self._counts(x, chunks, method, weigh), self.head.of(method)
        grad = torch.zeros_like(x)
        flat_grad = grad.view(-1, x.shape[-1])
        for number, chunk in enumerate(chunks):
            selected = flat[chunk.at].requires_grad_()
            normed = self.decoder.final_norm(selected, method)
            factor = scale if counts is None else counts[number].to(x.device).mul_(scale)
            own, normed_grad = loss_and_gradient(
                normed.detach(), chunk.targets, chunk.count, head, scale=factor
            )
            sums.add(own)
            torch.autograd.backward(normed, normed_grad)
            del normed, normed_grad
            found = cast("Tensor", selected.grad)
            flat_grad[chunk.at[: chunk.count]] = found[: chunk.count]
            del selected, found  # before those of the next chunk are there
        return sums, grad

    def _chunks(self, targets: Tensor) -> list[Chunk]:
        """Return the positions under loss in targets (B, S), some at a time."""
        at, count = loss_positions(targets, self.chunk)
        if not count:
            return []
        wanted = targets.reshape(-1)[at]
        parts = zip(torch.split(at, self.chunk), torch.split(wanted, self.chunk), strict=True)
        starts = range(0, len(at), self.chunk)
        return [
            Chunk(some, own, min(len(some), max(0, count - start)))
            for start, (some, own) in zip(starts, parts, strict=True)
        ]

    def _counts(
        self, x: Tensor, chunks: list[Chunk], method: Adaptation[Tensor], weigh: Weigh | None
    ) -> Sequence[Tensor] | None:
        """Return how much each token of each chunk counts (C,), None if all count once."""
        if weigh is None:
            return None
        weights = torch.zeros(sum(len(chunk.at) for chunk in chunks))
        with torch.no_grad():
            told = torch.from_numpy(weigh(self._of_tokens(x, chunks, method)))
        weights[: len(told)] = told
        return torch.split(weights, [len(chunk.at) for chunk in chunks])

    def _of_tokens(
        self, x: Tensor, chunks: list[Chunk], method: Adaptation[Tensor]
    ) -> NDArray[np.float32]:
        flat, losses, head = x.flatten(0, 1), [], self.head.of(method)
        for chunk in chunks:
            normed = self.decoder.final_norm(flat[chunk.at], method)
            losses.append(token_losses(normed, chunk.targets, head)[: chunk.count].cpu())
        found: NDArray[np.float32] = (
            torch.cat(losses).numpy() if losses else np.empty(0, np.float32)
        )
        return found
