"""Loss and gradients, block by block: each block is an autograd graph of its own.

Between blocks only the hidden states (B, S, D) and their gradients pass, so which blocks are
checkpointed, where checkpoints live and when a block's weights are present are matters of this
file and of the objects that it is given.

What is alive when, besides the weights, the trained tensors, their gradients and the optimizer's
state (T = B S tokens, c bytes a number in the compute dtype, L blocks of which the first m are
checkpointed, f the first adapted block):

- *forward, block i*: the inputs of the checkpointed blocks f..i (c T D each, unless offloaded),
  everything saved of the blocks m..i-1, what one block computes, one dense matrix;
- *loss*: all of the above that is kept, and the last hidden states, their selection under loss,
  its norm and gradient, and one chunk's logits, float32 (all of its vocabulary with a head on
  the device, one tile of it with a streamed head), and one slice of the head in the type of
  products;
- *backward, block i*: the inputs of the blocks below, everything saved of the blocks m..i, for a
  checkpointed block the same of block i alone, the gradient coming in, the gradients of what one
  block computes, one dense matrix.

Keys and values that later blocks read (lent ones) are leaves of their own: they stay where they
are from the forward pass of the block that made them to its backward pass, and the blocks that
read them add their gradients to them. A checkpoint has none: they are there when it is computed
again.

Scratch memory (:mod:`edgetune_torch.workspace`) is made in the first step and stays: on CPU one
dense matrix in the type of products, and where activations are narrower, 512 rows of the widest
input and of the widest output. Streamed blocks take two slots, made at opening.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.data.answers import Weigh
from edgetune.data.batch import MicroBatch, prompt_batch
from edgetune.network.adaptation import Adaptation
from edgetune_torch.checkpoints import Checkpoints, KeptCheckpoints
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
from edgetune_torch.token_layout import Lent, TokenLayout


@dataclass(slots=True)
class SavedBlock:
    """What a block that is not checkpointed keeps for the backward pass."""

    block_input: Tensor
    output: Tensor
    lent: Lent | None


class Engine:
    """Runs micro-batches through a decoder with an adaptation."""

    def __init__(
        self,
        decoder: Decoder,
        head: Head,
        *,
        checkpointed: int,
        chunk: int,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        """Checkpoint the first ``checkpointed`` blocks; hold ``chunk`` tokens' logits at once."""
        self.decoder = decoder
        self.head = head
        self.checkpointed = checkpointed
        self.chunk = chunk
        self.checkpoints = checkpoints or KeptCheckpoints()

    def gradients(
        self,
        batch: MicroBatch,
        method: Adaptation[Tensor],
        *,
        scale: float,
        weigh: Weigh | None = None,
        done: Callable[[int], None] | None = None,
    ) -> Sums:
        """Add ``scale`` times the gradient of the summed loss to the parameters' ``grad``.

        ``done`` is told each block that has given its gradients, the last one first. ``weigh`` is told the losses of the loss tokens (N,), in order, and says how much each
        counts; without it each counts once.
        """
        layout, tokens, targets = self._layout(batch, method)
        self.checkpoints.clear()
        saved, x = self._forward(tokens, layout, method)
        sums, *last = self._head_gradient(x, targets, method, scale, weigh)
        del x
        grad = self._backward(saved, last, layout, method, done)
        if method.trains_input:
            torch.autograd.backward(self.decoder.embed(tokens, layout, method), grad)
        return sums

    @torch.no_grad()
    def evaluate(self, batch: MicroBatch, method: Adaptation[Tensor]) -> Sums:
        """Return the summed loss of a micro-batch."""
        layout, tokens, targets = self._layout(batch, method)
        return self._loss(self.decoder.hidden(tokens, layout, method), targets, method)

    @torch.no_grad()
    def evaluate_rows(self, batch: MicroBatch, method: Adaptation[Tensor]) -> list[Sums]:
        """Return the summed loss of each row of a micro-batch."""
        layout, tokens, targets = self._layout(batch, method)
        x = self.decoder.hidden(tokens, layout, method)
        each = method.of_rows(len(x))
        return [self._loss(x[i : i + 1], targets[i : i + 1], one) for i, one in enumerate(each)]

    @torch.no_grad()
    def losses(self, batch: MicroBatch, method: Adaptation[Tensor]) -> NDArray[np.float32]:
        """Return the loss of each loss token of a micro-batch, in order, (N,)."""
        layout, tokens, targets = self._layout(batch, method)
        x = self.decoder.hidden(tokens, layout, method)
        at, count = loss_positions(targets, self.chunk)
        normed = self.decoder.final_norm(x.flatten(0, 1)[at], method)
        return self._losses(normed, targets.reshape(-1)[at], count)

    @torch.no_grad()
    def logits(self, row: Sequence[int], method: Adaptation[Tensor]) -> Tensor:
        """Return float32 logits (S, V) after each token of one row."""
        layout, tokens, _ = self._layout(prompt_batch([row]), method)
        x = self.decoder.hidden(tokens, layout, method)[0]
        logits = self.head.logits(self.decoder.final_norm(x, method))
        return logits[method.virtual_tokens :][: len(row)]

    def close(self) -> None:
        """Give weights, checkpoints and scratch memory back."""
        self.checkpoints.close()
        self.decoder.weights.close()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.decoder.weights.device

    def _layout(
        self, batch: MicroBatch, method: Adaptation[Tensor]
    ) -> tuple[TokenLayout, Tensor, Tensor]:
        """Return where a micro-batch's tokens stand, the tokens and the targets (B, S)."""
        self.decoder.weights.workspace.divisible = len(batch.tokens) > 1
        batch, layout = self.decoder.placed(batch, method)
        tokens = torch.from_numpy(batch.tokens).to(self.device).long()
        return layout, tokens, torch.from_numpy(batch.targets).to(self.device)

    def _loss(self, x: Tensor, targets: Tensor, method: Adaptation[Tensor]) -> Sums:
        """Return the summed loss of the last block's output (B, S, D)."""
        at, count = loss_positions(targets, self.chunk)
        selected = self.decoder.final_norm(x.flatten(0, 1)[at], method)
        wanted = targets.reshape(-1)[at]
        return loss_only(selected, wanted, count, self.head, chunk=self.chunk)

    def _forward(
        self, tokens: Tensor, layout: TokenLayout, method: Adaptation[Tensor]
    ) -> tuple[list[SavedBlock], Tensor]:
        """Return each block that keeps what it saved for its backward pass, and the last output."""
        first, saved = method.first_layer, []
        with torch.no_grad():
            x = self.decoder.embed(tokens, layout, method)
        for layer in self.decoder.weights.blocks.walk(range(self.decoder.shape.layers)):
            if layer >= max(first, self.checkpointed):
                block_input = _leaf(x, layer, method)
                x = self.decoder.block(layer, block_input, layout, method)
                saved.append(SavedBlock(block_input, x, layout.lent.get(layer)))
                _cut_off(layout, layer, method)
                continue
            if layer >= first:
                self.checkpoints.put(x)
            with torch.no_grad():
                x = self.decoder.block(layer, x, layout, method)
            _cut_off(layout, layer, method)
        return saved, x.detach()

    def _head_gradient(
        self,
        x: Tensor,
        targets: Tensor,
        method: Adaptation[Tensor],
        scale: float,
        weigh: Weigh | None,
    ) -> tuple[Sums, Tensor]:
        """Return the loss and the gradient (B, S, D) of the last block's output."""
        if self.device.type == "cpu":
            trim()  # more than ever lives from now on
        at, count = loss_positions(targets, self.chunk)
        selected = x.flatten(0, 1)[at].requires_grad_()
        normed = self.decoder.final_norm(selected, method)
        wanted = targets.reshape(-1)[at]
        factor: float | Tensor = scale
        if weigh is not None:
            weights = torch.zeros(len(wanted), device=self.device)
            losses = self._losses(normed.detach(), wanted, count)
            weights[:count] = torch.from_numpy(weigh(losses)).to(self.device)
            factor = weights.mul_(scale)
        sums, normed_grad = loss_and_gradient(
            normed.detach(), wanted, count, self.head, chunk=self.chunk, scale=factor
        )
        torch.autograd.backward(normed, normed_grad)
        grad = torch.zeros_like(x)
        grad.view(-1, x.shape[-1])[at[:count]] = cast("Tensor", selected.grad)[:count]
        return sums, grad

    def _losses(self, normed: Tensor, wanted: Tensor, count: int) -> NDArray[np.float32]:
        """Return the losses of the first ``count`` rows of the head's input (N, D), (count,)."""
        losses = token_losses(normed, wanted, self.head, chunk=self.chunk)
        found: NDArray[np.float32] = losses[:count].cpu().numpy()
        return found

    def _backward(
        self,
        saved: list[SavedBlock],
        last: list[Tensor],
        layout: TokenLayout,
        method: Adaptation[Tensor],
        done: Callable[[int], None] | None,
    ) -> Tensor:
        """Go through the blocks from the last to the first; each saved block is dropped when done.

        ``last`` holds the gradient of the last block's output, and no more when it was used.
        Returns the gradient of the first adapted block's input, if that is wanted.
        """
        grad = last.pop()
        order = range(self.decoder.shape.layers - 1, method.first_layer - 1, -1)
        for layer in self.decoder.weights.blocks.walk(order):
            leaves = layout.lent.pop(layer, ())
            came_back = [leaf.grad for leaf in leaves]
            del leaves
            if layer >= self.checkpointed:
                saved_block = saved.pop()
                block_input, out, made = (
                    saved_block.block_input,
                    saved_block.output,
                    saved_block.lent,
                )
                del saved_block
            else:
                block_input = _leaf(self.checkpoints.take(), layer, method)
                out = self.decoder.block(layer, block_input, layout, method)
                made = layout.lent.pop(layer, None)
            torch.autograd.backward(*_ends((out, *(made or ())), (grad, *came_back)))
            del made, came_back
            if block_input.grad is not None:
                grad = block_input.grad
            del out, block_input
            if done is not None:
                done(layer)
        return grad


def _ends(
    made: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what a block made whose gradients are there, and those."""
    both = zip(made, grads, strict=True)
    found = [(x, grad) for x, grad in both if grad is not None and x.requires_grad]
    return [x for x, _ in found], [grad for _, grad in found]


def _cut_off(layout: TokenLayout, layer: int, method: Adaptation[Tensor]) -> None:
    """Let the blocks that read what this one lent add up its gradients there."""
    made = layout.lent.get(layer)
    if made is not None:
        wanted = method.trains_input or layer >= method.first_layer
        k, v = (x.detach().requires_grad_(wanted) for x in made)
        layout.lent[layer] = (k, v)


def _leaf(x: Tensor, layer: int, method: Adaptation[Tensor]) -> Tensor:
    """Return a block's input marked for gradients, unless nothing before it is trained."""
    return x.detach().requires_grad_(method.trains_input or layer > method.first_layer)
