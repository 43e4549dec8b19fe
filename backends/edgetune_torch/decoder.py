"""A frozen model on tensors: the text of :mod:`edgetune.network.block` over its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgetune.data.batch import MicroBatch
from edgetune.network.adaptation import BASE, Adaptation
from edgetune.network.block import Block
from edgetune.shape import ModelShape
from edgetune_torch.load import Weights
from edgetune_torch.ops import TorchOps
from edgetune_torch.tiles import TiledBlocks
from edgetune_torch.token_layout import Cache, TokenLayout, placed
from edgetune_torch.weights import BlockWeights


class Decoder:
    """A frozen model, one block at a time; an adaptation joins in at its places."""

    def __init__(
        self, shape: ModelShape, weights: Weights, dtype: torch.dtype, tile: int = 0
    ) -> None:
        """Compute in ``dtype`` with the given weights.

        Passes without gradients, and those that compute a block again, go over ``tile`` positions
        of the rows at a time; 0: all.
        """
        self.shape = shape
        self.weights = weights
        self.dtype = dtype
        self.tile = tile
        norms = {"final": weights.final_norm, "embedding": weights.embedding_norm}
        biases = {"final": weights.final_norm_bias, "embedding": weights.embedding_norm_bias}
        self._ends = BlockWeights(
            norms={name: x for name, x in norms.items() if x is not None},
            norm_biases={name: x for name, x in biases.items() if x is not None},
        )
        self._anywhere = TokenLayout(positions=torch.empty(0), documents=(), dtype=dtype)

    def placed(
        self, batch: MicroBatch, method: Adaptation[Tensor], caches: Sequence[Cache] = ()
    ) -> tuple[MicroBatch, TokenLayout]:
        """Return a micro-batch as the method wants it, and where its tokens stand."""
        return placed(batch, method, self.shape, self.dtype, self.weights.device, caches)

    def embed(
        self, tokens: Tensor, layout: TokenLayout, method: Adaptation[Tensor] = BASE
    ) -> Tensor:
        """Return the input of the first block (B, S, D) for tokens (B, S).

        What each block reads besides goes into the layout.
        """
        end, own = self._end(layout, method), self.weights.per_layer
        x = end.embedded(tokens)
        if own is not None:
            layout.per_layer = own.inputs(tokens, x, self.shape)
        return end.entered(x)

    def hidden(self, tokens: Tensor, layout: TokenLayout, method: Adaptation[Tensor]) -> Tensor:
        """Return the output of the last block (B, S, D) for tokens (B, S)."""
        x, blocks = self.embed(tokens, layout, method), self.tiled(layout, method)
        for layer in self.weights.blocks.walk(range(self.shape.layers)):
            x = blocks.forward(layer, x)
        return x

    def tiled(self, layout: TokenLayout, method: Adaptation[Tensor]) -> TiledBlocks:
        """Return the blocks as they are computed tile by tile in one pass."""
        return TiledBlocks(self, layout, method)

    def block(
        self, layer: int, x: Tensor, layout: TokenLayout, method: Adaptation[Tensor]
    ) -> Tensor:
        """Return the output of one block (B, S, D)."""
        return self._block(layer, layout, method).output(x)

    def block_again(
        self, layer: int, x: Tensor, layout: TokenLayout, method: Adaptation[Tensor]
    ) -> Tensor:
        """Return the same for its gradients alone: its numbers are any."""
        unread = method.unread(self.shape.blocks[layer])
        return self._block(layer, layout, method, unread).output(x)

    def leave(self, layer: int, x: Tensor, layout: TokenLayout, method: Adaptation[Tensor]) -> None:
        """Leave what later tiles read of a tile of a block's input (B, S, D) in the layout's tile."""
        self._block(layer, layout, method).leave(x)

    def final_norm(self, x: Tensor, method: Adaptation[Tensor] = BASE) -> Tensor:
        """Return the input of the head (..., D), of tokens anywhere."""
        return self._end(self._anywhere, method).normed(x)

    def _block(
        self,
        layer: int,
        layout: TokenLayout,
        method: Adaptation[Tensor],
        unread: frozenset[str] = frozenset(),
    ) -> Block[Tensor]:
        ops = TorchOps(self.shape, self.weights, self.weights.blocks[layer], layout, layer, unread)
        return Block(ops, self.shape, layer, method)

    def _end(self, layout: TokenLayout, method: Adaptation[Tensor]) -> Block[Tensor]:
        ops = TorchOps(self.shape, self.weights, self._ends, layout)
        return Block(ops, self.shape, None, method)
