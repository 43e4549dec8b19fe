"""Loss and gradients, block by block: each block is an autograd graph of its own.

Between blocks only the hidden states (B, S, D) and their gradients pass, so which blocks are
checkpointed, where checkpoints live and when a block's weights are present are matters of this
file and of the objects that it is given.

What is alive when, besides the weights, the trained tensors, their gradients and the optimizer's
state (T = B S tokens, c bytes a number in the compute dtype, L blocks of which the first m are
checkpointed, f the first adapted block):

- *forward, block i*: the inputs of the checkpointed blocks f..i (c T D each, unless offloaded),
  everything saved of the blocks m..i-1, what one block computes, one dense matrix;
- *loss*: all of the above that is kept, the last hidden states and their gradient, and of one
  chunk the states under loss, their norm, its gradient, one tile of logits in float32 (all of them
  for a head that is trained) and one slice of the head in the type of products;
- *backward, block i*: the inputs of the blocks below, everything saved of the blocks m..i, for a
  checkpointed block the same of block i alone, the gradient coming in, the gradients of what one
  block computes, one dense matrix.

With tiles (:mod:`edgetune_torch.tiles`) what a checkpointed block computes is what one tile
computes, and its output, its keys and values, and on the way back the gradients of these.

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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.backend import Pull
from edgetune.data.answers import Weigh
from edgetune.data.batch import MicroBatch, prompt_batch
from edgetune.network.adaptation import Adaptation
from edgetune.network.tiles import spans
from edgetune_torch.checkpoints import Checkpoints, KeptCheckpoints
from edgetune_torch.decoder import Decoder
from edgetune_torch.head_loss import HeadLoss
from edgetune_torch.loss import Head, Sums
from edgetune_torch.pulls import Pulls, activations, answer_starts_of
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
        self.head_loss = HeadLoss(decoder, head, chunk)
        self.checkpointed = checkpointed
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

        ``done`` is told each block that has given its gradients, the last one first. ``weigh`` is
        told the losses of the loss tokens (N,), in order, and says how much each counts; without
        it each counts once.
        """
        layout, tokens, targets = self._layout(batch, method)
        self.checkpoints.clear()
        saved, x = self._forward(tokens, layout, method)
        sums, *last = self.head_loss.gradient(x, targets, method, scale, weigh)
        del x
        grad = self._backward(saved, last, layout, method, done=done)
        self._input_backward(tokens, grad, layout, method)
        return sums

    def pull(self, batch: MicroBatch, method: Adaptation[Tensor], pull: Pull) -> None:
        """Add the gradient of what ``pull`` is the gradient of to the parameters' ``grad``.

        It is told the output (B, D) of each block where the rows' answers begin.
        """
        layout, tokens, targets = self._layout(batch, method)
        pulls = Pulls(pull, answer_starts_of(targets))
        self.checkpoints.clear()
        saved, x = self._forward(tokens, layout, method)
        last = [torch.zeros_like(x)]
        pulls.add(self.decoder.shape.layers - 1, x, last[0])
        del x
        grad = self._backward(saved, last, layout, method, pulls=pulls)
        self._input_backward(tokens, grad, layout, method)

    @torch.no_grad()
    def activations(self, batch: MicroBatch, method: Adaptation[Tensor]) -> NDArray[np.float32]:
        """Return the output of each block (L, B, D) where the rows' answers begin."""
        layout, tokens, targets = self._layout(batch, method)
        return activations(self.decoder, tokens, answer_starts_of(targets), layout, method)

    def _input_backward(
        self, tokens: Tensor, grad: Tensor, layout: TokenLayout, method: Adaptation[Tensor]
    ) -> None:
        """Add the gradients of what the method does to the embeddings, if it does anything."""
        if method.trains_input:
            for span in spans(tokens.shape[1], self.decoder.tile):
                x = self.decoder.embed(tokens[:, span], layout.of_span(span), method)
                torch.autograd.backward(x, grad[:, span])

    @torch.no_grad()
    def evaluate(self, batch: MicroBatch, method: Adaptation[Tensor]) -> Sums:
        """Return the summed loss of a micro-batch."""
        layout, tokens, targets = self._layout(batch, method)
        return self.head_loss.summed(self.decoder.hidden(tokens, layout, method), targets, method)

    @torch.no_grad()
    def evaluate_rows(self, batch: MicroBatch, method: Adaptation[Tensor]) -> list[Sums]:
        """Return the summed loss of each row of a micro-batch."""
        layout, tokens, targets = self._layout(batch, method)
        x = self.decoder.hidden(tokens, layout, method)
        each = method.of_rows(len(x))
        return [
            self.head_loss.summed(x[i : i + 1], targets[i : i + 1], one)
            for i, one in enumerate(each)
        ]

    @torch.no_grad()
    def losses(self, batch: MicroBatch, method: Adaptation[Tensor]) -> NDArray[np.float32]:
        """Return the loss of each loss token of a micro-batch, in order, (N,)."""
        layout, tokens, targets = self._layout(batch, method)
        x = self.decoder.hidden(tokens, layout, method)
        return self.head_loss.of_tokens(x, targets, method)

    @torch.no_grad()
    def logits(self, row: Sequence[int], method: Adaptation[Tensor]) -> Tensor:
        """Return float32 logits (S, V) after each token of one row."""
        layout, tokens, _ = self._layout(prompt_batch([row]), method)
        x = self.decoder.hidden(tokens, layout, method)[0]
        logits = self.head.of(method).logits(self.decoder.final_norm(x, method))
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

    def _forward(
        self, tokens: Tensor, layout: TokenLayout, method: Adaptation[Tensor]
    ) -> tuple[list[SavedBlock], Tensor]:
        """Return each block that keeps what it saved for its backward pass, and the last output."""
        first, saved, tiled = method.first_layer, [], self.decoder.tiled(layout, method)
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
            x = tiled.forward(layer, x)
            _cut_off(layout, layer, method)
        return saved, x.detach()

    def _backward(
        self,
        saved: list[SavedBlock],
        last: list[Tensor],
        layout: TokenLayout,
        method: Adaptation[Tensor],
        *,
        done: Callable[[int], None] | None = None,
        pulls: Pulls | None = None,
    ) -> Tensor:
        """Go through the blocks from the last to the first; each saved block is dropped when done.

        ``last`` holds the gradient of the last block's output, and no more when it was used;
        ``pulls`` add to those of the blocks before it. Returns the gradient of the first adapted block's input, if that is wanted.
        """
        grad, tiled = last.pop(), self.decoder.tiled(layout, method)
        order = range(self.decoder.shape.layers - 1, method.first_layer - 1, -1)
        for layer in self.decoder.weights.blocks.walk(order):
            if layer < self.checkpointed and tiled.splits(layer):
                block_input, goes_on = self.checkpoints.take(), _goes_on(layer, method)
                grad = tiled.backward(layer, block_input, grad, goes_on=goes_on)
            else:
                grad, block_input = self._whole_backward(layer, grad, saved, layout, method)
            if pulls is not None and layer > method.first_layer:
                pulls.add(layer - 1, block_input, grad)
            del block_input
            if done is not None:
                done(layer)
        return grad

    def _whole_backward(
        self,
        layer: int,
        grad: Tensor,
        saved: list[SavedBlock],
        layout: TokenLayout,
        method: Adaptation[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Go through a block at once; return its input's gradient, or the same if none is wanted,
        and the input.
        """
        came_back = [leaf.grad for leaf in layout.lent.pop(layer, ())]
        if layer >= self.checkpointed:
            block = saved.pop()
            block_input, out, made = block.block_input, block.output, block.lent
            del block
        else:
            block_input = _leaf(self.checkpoints.take(), layer, method)
            out = self.decoder.block_again(layer, block_input, layout, method)
            made = layout.lent.pop(layer, None)
        torch.autograd.backward(*_ends((out, *(made or ())), (grad, *came_back)))
        return (grad if block_input.grad is None else block_input.grad), block_input


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
    return x.detach().requires_grad_(_goes_on(layer, method))


def _goes_on(layer: int, method: Adaptation[Tensor]) -> bool:
    """Return whether the gradient of a block's input is wanted."""
    return method.trains_input or layer > method.first_layer
