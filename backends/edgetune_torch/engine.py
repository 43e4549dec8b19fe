"""Loss and gradients, block by block: each block is an autograd island of its own.

Between islands only the hidden states (B, S, D) and their gradients pass, so which blocks are
checkpointed, where checkpoints live and when a block's weights are present are matters of this
file alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune.data.batch import MicroBatch
from edgetune_torch.adaptation import Adaptation
from edgetune_torch.decoder import Decoder, Place
from edgetune_torch.loss import Head, Sums, loss_and_gradient, loss_only, loss_positions


@dataclass(slots=True)
class Island:
    """What one block keeps for the backward pass: its input, and its output if not recomputed."""

    entry: Tensor
    exit: Tensor | None


class Engine:
    """Runs micro-batches through a decoder with an adaptation."""

    def __init__(self, decoder: Decoder, head: Head, *, checkpointed: int, chunk: int) -> None:
        """Checkpoint the first ``checkpointed`` blocks; hold ``chunk`` tokens' logits at once."""
        self.decoder = decoder
        self.head = head
        self.checkpointed = checkpointed
        self.chunk = chunk

    def gradients(self, batch: MicroBatch, method: Adaptation, *, scale: float) -> Sums:
        """Add ``scale`` times the gradient of the summed loss to the parameters' ``grad``."""
        place, tokens, targets = self._place(batch)
        islands, x = self._forward(tokens, place, method)
        sums, grad = self._head_gradient(x, targets, scale)
        self._backward(islands, grad, place, method)
        return sums

    @torch.no_grad()
    def evaluate(self, batch: MicroBatch, method: Adaptation) -> Sums:
        """Return the summed loss of a micro-batch."""
        place, tokens, targets = self._place(batch)
        x = self._last_hidden(tokens, place, method)
        at = loss_positions(targets)
        selected = self.decoder.final_norm(x.flatten(0, 1)[at])
        return loss_only(selected, targets.reshape(-1)[at], self.head, chunk=self.chunk)

    @torch.no_grad()
    def logits(self, row: Sequence[int], method: Adaptation) -> Tensor:
        """Return float32 logits (S, V) after each token of one row."""
        tokens = torch.tensor([list(row)], device=self.decoder.weights.embedding.device)
        place = Place(
            positions=torch.arange(len(row), device=tokens.device)[None],
            documents=((len(row),),),
            dtype=self.decoder.dtype,
            context=len(row),
        )
        x = self._last_hidden(tokens, place, method)
        return self.head.logits(self.decoder.final_norm(x[0]))

    def _last_hidden(self, tokens: Tensor, place: Place, method: Adaptation) -> Tensor:
        x = self.decoder.embed(tokens, place)
        for layer in range(self.decoder.shape.layers):
            x = self.decoder.block(layer, x, place, method)
        return x

    def _place(self, batch: MicroBatch) -> tuple[Place, Tensor, Tensor]:
        device = self.decoder.weights.embedding.device
        place = Place(
            positions=torch.from_numpy(batch.positions()).to(device),
            documents=batch.documents,
            dtype=self.decoder.dtype,
            context=batch.tokens.shape[1],
        )
        tokens = torch.from_numpy(batch.tokens).to(device).long()
        return place, tokens, torch.from_numpy(batch.targets).to(device)

    def _forward(
        self, tokens: Tensor, place: Place, method: Adaptation
    ) -> tuple[list[Island], Tensor]:
        """Return one island for each block from the first adapted one on, and the last output."""
        first, islands = method.first_layer(), []
        with torch.no_grad():
            x = self.decoder.embed(tokens, place)
            for layer in range(first):
                x = self.decoder.block(layer, x, place, method)
        for layer in range(first, self.decoder.shape.layers):
            entry = x.detach()
            if layer < self.checkpointed:
                with torch.no_grad():
                    x = self.decoder.block(layer, entry, place, method)
                islands.append(Island(entry, None))
            else:
                x = self.decoder.block(layer, _leaf(entry, layer, first), place, method)
                islands.append(Island(entry, x))
        return islands, x.detach()

    def _head_gradient(self, x: Tensor, targets: Tensor, scale: float) -> tuple[Sums, Tensor]:
        """Return the loss and the gradient (B, S, D) of the last block's output."""
        at = loss_positions(targets)
        selected = x.flatten(0, 1)[at].requires_grad_()
        normed = self.decoder.final_norm(selected)
        sums, normed_grad = loss_and_gradient(
            normed.detach(), targets.reshape(-1)[at], self.head, chunk=self.chunk, scale=scale
        )
        (selected_grad,) = torch.autograd.grad(normed, selected, normed_grad)
        grad = torch.zeros_like(x)
        grad.view(-1, x.shape[-1])[at] = selected_grad
        return sums, grad

    def _backward(
        self, islands: list[Island], grad: Tensor, place: Place, method: Adaptation
    ) -> None:
        """Go through the blocks from the last to the first; each island is dropped when done."""
        first = method.first_layer()
        for layer in reversed(range(first, first + len(islands))):
            island = islands.pop()
            entry, out = island.entry, island.exit
            if out is None:
                entry = _leaf(entry, layer, first)
                out = self.decoder.block(layer, entry, place, method)
            del island
            torch.autograd.backward(out, grad)
            if entry.grad is not None:
                grad = entry.grad
            del out, entry


def _leaf(x: Tensor, layer: int, first: int) -> Tensor:
    """Mark a block's input for gradients, unless nothing before it is trained."""
    return x.requires_grad_(layer > first)
