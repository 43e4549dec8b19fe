"""A frozen model on MLX: the text of :mod:`edgetune.network.block` over its weights."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from edgetune.data.batch import MicroBatch
from edgetune.network.adaptation import Adaptation
from edgetune.network.block import Block
from edgetune.shape import ModelShape
from edgetune_mlx.load import BlockWeights, Weights
from edgetune_mlx.matrices import GraphInMaking
from edgetune_mlx.ops import MlxOps
from edgetune_mlx.token_layout import Cache, TokenLayout, placed


class Decoder:
    """A frozen model, one block at a time; an adaptation joins in at its places."""

    def __init__(self, shape: ModelShape, weights: Weights, dtype: mx.Dtype, tile: int = 0) -> None:
        """Compute in ``dtype`` with the given weights.

        Passes of which nothing is kept go over ``tile`` positions of the rows at a time; 0: all.
        """
        self.shape = shape
        self.weights = weights
        self.dtype = dtype
        self.tile = tile
        self.graph = GraphInMaking()
        """Entered by whoever differentiates blocks, until their gradients' graph is made."""
        norms = {"final": weights.final_norm, "embedding": weights.embedding_norm}
        biases = {"final": weights.final_norm_bias, "embedding": weights.embedding_norm_bias}
        self._ends = BlockWeights(
            norms={name: x for name, x in norms.items() if x is not None},
            norm_biases={name: x for name, x in biases.items() if x is not None},
        )
        self._anywhere = TokenLayout(positions=mx.array([], mx.int32), documents=None, context=1)

    def placed(
        self, batch: MicroBatch, method: Adaptation[mx.array], caches: Sequence[Cache] = ()
    ) -> tuple[MicroBatch, TokenLayout]:
        """Return a micro-batch as the method wants it, and where its tokens stand."""
        return placed(self.shape, batch, method, caches)

    def embed(
        self, tokens: mx.array, layout: TokenLayout, method: Adaptation[mx.array]
    ) -> mx.array:
        """Return the input of the first block (B, S, D) for tokens (B, S).

        What each block reads besides goes into the layout.
        """
        end, own = self._end(layout, method), self.weights.per_layer
        x = end.embedded(tokens)
        if own is not None:
            layout.per_layer = own.inputs(tokens, x, self.shape)
        return end.entered(x)

    def block(
        self, layer: int, x: mx.array, layout: TokenLayout, method: Adaptation[mx.array],
        weights: BlockWeights | None = None,
    ) -> mx.array:  # fmt: skip
        """Return the output of one block (B, S, D).

        ``weights`` are its own, where they are there for several passes.
        """
        with self.graph as graph:
            return self._block(layer, layout, method, weights, graph).output(x)

    def leave(
        self, layer: int, x: mx.array, layout: TokenLayout, method: Adaptation[mx.array],
        weights: BlockWeights,
    ) -> None:  # fmt: skip
        """Leave what later tiles read of a tile of a block's input (B, S, D) in the layout's tile."""
        with self.graph as graph:
            self._block(layer, layout, method, weights, graph).leave(x)

    def final_norm(self, x: mx.array, method: Adaptation[mx.array]) -> mx.array:
        """Return the input of the head (..., D), of tokens anywhere."""
        return self._end(self._anywhere, method).normed(x)

    def _block(
        self, layer: int, layout: TokenLayout, method: Adaptation[mx.array],
        weights: BlockWeights | None, graph: GraphInMaking,
    ) -> Block[mx.array]:  # fmt: skip
        own, order = weights or self.weights.blocks[layer], graph.sequencer()
        ops = MlxOps(self.shape, self.weights, own, layout, self.dtype, layer, order)
        return Block(ops, self.shape, layer, method)

    def _end(self, layout: TokenLayout, method: Adaptation[mx.array]) -> Block[mx.array]:
        ops = MlxOps(self.shape, self.weights, self._ends, layout, self.dtype)
        return Block(ops, self.shape, None, method)
