"""A block computed tile by tile over its rows: exact, with the activations of one tile at a time.

The way forward goes from the first tile to the last, each leaving its keys and values for those
after it. The way back makes keys and values of all tiles again, then goes from the last tile to
the first: by then all queries that see a tile's keys have given these their gradients. Each tile is
a graph of its own. Nothing of a block but its input, its output or the gradient, keys and values is
as long as a row, and all of these are lists of arrays, so that none is ever copied as a whole.

A convolution reads a few tokens before its own: a tile is computed with them, and they get gradients
of it. A state is carried from tile to tile; on the way back those between tiles are made again with
the keys, and their gradients go from the last tile to the first. Blocks that lend keys and values or
read lent ones, and those with a mixer beside attention, are computed whole.

B rows, S positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from edgetune.methods.adapted import Adapted
from edgetune.network.adaptation import Adaptation
from edgetune.network.tiles import reaching, spans
from edgetune_mlx.checkpoints import States
from edgetune_mlx.decoder import Decoder
from edgetune_mlx.gradients import Gradients
from edgetune_mlx.load import BlockWeights
from edgetune_mlx.tile_attention import KeyPiece, Tile
from edgetune_mlx.token_layout import TokenLayout

Evaluate = Callable[..., None]
"""Evaluates arrays, and gradients by name."""


def joined(x: States) -> mx.array:
    """Return hidden states (B, S, D) as one array."""
    return x[0] if len(x) == 1 else mx.concatenate(x, axis=1)


@dataclass(frozen=True, slots=True)
class TiledBlocks:
    """The blocks of a decoder in one pass over a micro-batch."""

    decoder: Decoder
    layout: TokenLayout
    evaluate: Evaluate

    def splits(self, layer: int) -> bool:
        """Return whether a block is computed in more than one tile."""
        return len(self.spans) > 1 and self.decoder.shape.blocks[layer].splits

    @property
    def spans(self) -> list[slice]:
        """The positions of the tiles."""
        return spans(self.layout.positions.shape[1], self.decoder.tile)

    def parts(self, x: States) -> States:
        """Return hidden states tile by tile; views, where they are one array."""
        whole = len(x) == 1 and len(self.spans) > 1
        return [x[0][:, span] for span in self.spans] if whole else [*x]

    def forward(self, layer: int, x: States, method: Adaptation[mx.array]) -> States:
        """Return the output of a block for its input, of which nothing else is kept."""
        weights, pieces = self.decoder.weights.blocks[layer], list[KeyPiece]()
        out, x, state = States(), self.parts(x), None
        for number, span in enumerate(self.spans):
            tile = self._tile(layer, span, pieces, state)
            out.append(self._output(layer, self._read(x, number, tile), tile, method, weights))
            last = number == len(self.spans) - 1
            left, state = ([], None) if last else (tile.left(), tile.behind)
            del tile  # what is not asked for would be kept
            self.evaluate(out[-1], *_arrays(left), *_there(state))
            pieces += left
        return out

    def backward(
        self, layer: int, x: States, grad: States, method: Adapted[mx.array],
        add: Callable[[Gradients], Gradients], *, goes_on: bool,
    ) -> None:  # fmt: skip
        """Let the gradient of a block's input take the place of ``grad``, that of its output.

        ``add`` is given those of the block's trained tensors, tile by tile, and returns the sums.
        If the gradient does not go on, nothing wants it. The input is used up.
        """
        weights, x = self.decoder.weights.blocks[layer], self._taken(x)
        grad[:] = self.parts(grad)
        pieces, states = self._left(layer, x, method, weights)
        early: list[mx.array] = []
        later: list[mx.array] = []
        for number, span in reversed([*enumerate(self.spans)]):
            past = [each for each in pieces if each.start < span.start]
            tile = self._tile(layer, span, past, states.pop())
            grads = [grad[number], *_gradients(pieces[len(past) :]), *later]
            read = self._read(x, number, tile)
            del x[number]
            x_grad, later, found = self._back(layer, read, grads, tile, method, weights)
            pieces = past
            if goes_on:
                grad[number], early = _with_early(x_grad, tile.before, early)
            of_trained = add(found)
            # a graph that nobody asks for would be kept, and gradients beside the sums of them
            del read, grads, x_grad, tile, found
            sums = [each for piece in past for each in piece.grads]
            self.evaluate(of_trained, grad[number], *early, *later, *sums)

    def _back(
        self, layer: int, x: mx.array, grads: list[mx.array], tile: Tile,
        method: Adapted[mx.array], weights: BlockWeights,
    ) -> tuple[mx.array, list[mx.array], Gradients]:  # fmt: skip
        """Return the gradients of a tile's input, of the state before it and of what is trained.

        ``grads`` are those of the tile's output, and of what later tiles read of it, if there are such.
        """
        own, state = method.of_block(layer), _there(tile.state)

        def computed(x: mx.array, *others: mx.array) -> list[mx.array]:
            over = method.over(dict(zip(own, others[len(state) :], strict=True)))
            tile.state = others[0] if state else None
            out = self._output(layer, x, tile, over, weights)
            return [out, *tile.passed][: len(grads)]

        with self.decoder.graph:
            x_grad, *found = mx.vjp(computed, [x, *state, *own.values()], grads)[1]
        count = len(state)
        return x_grad, found[:count], dict(zip(own, found[count:], strict=True))

    def _output(
        self, layer: int, x: mx.array, tile: Tile, method: Adaptation[mx.array],
        weights: BlockWeights,
    ) -> mx.array:  # fmt: skip
        """Return the output of a tile for what is read of the block's input."""
        out = self.decoder.block(layer, x, self._place(tile), method, weights)
        return mx.contiguous(out[:, tile.before :]) if tile.before else out

    def _read(self, x: States, number: int, tile: Tile) -> mx.array:
        """Return a tile of a block's input, with the tokens before it that are computed with it."""
        if not tile.before:
            return x[number]
        return mx.concatenate([x[number - 1][:, -tile.before :], x[number]], axis=1)

    def _left(
        self, layer: int, x: States, method: Adapted[mx.array], weights: BlockWeights
    ) -> tuple[list[KeyPiece], list[mx.array | None]]:
        """Return keys and values of all tiles, and the state before each.

        Those of the last tile are seen by itself alone.
        """
        pieces, states = list[KeyPiece](), list[mx.array | None]([None])
        leaves = self.decoder.shape.blocks[layer].leaves
        for number, span in enumerate(self.spans[:-1]):
            tile = self._tile(layer, span, pieces, states[-1])
            if leaves:
                read = self._read(x, number, tile)
                self.decoder.leave(layer, read, self._place(tile), method, weights)
                del read
            left, state = tile.left(), tile.behind
            del tile
            self.evaluate(*_arrays(left), *_there(state))
            pieces += left
            states.append(state)
        return pieces, states

    def _taken(self, x: States) -> States:
        """Return hidden states tile by tile, of which the caller has none any more."""
        parts = self.parts(x)
        x.clear()
        return parts

    def _tile(self, layer: int, span: slice, past: list[KeyPiece], state: mx.array | None) -> Tile:
        read = reaching(span, self.decoder.shape.blocks[layer].reach)
        before = span.start - read.start
        return Tile(read.start, span.stop, past, self.layout.keys, before=before, state=state)

    def _place(self, tile: Tile) -> TokenLayout:
        return self.layout.of_span(slice(tile.start, tile.stop), tile)


def _with_early(
    grad: mx.array, before: int, early: list[mx.array]
) -> tuple[mx.array, list[mx.array]]:
    """Return the gradient of a tile's own input, and that of the ``before`` tokens before it.

    ``early`` is the latter of the tile behind, which is added to the last tokens.
    """
    own = grad[:, before:]
    for each in early:
        own = own.at[:, own.shape[1] - each.shape[1] :].add(each)
    return mx.contiguous(own), [mx.contiguous(grad[:, :before])] if before else []


def _there(state: mx.array | None) -> list[mx.array]:
    return [] if state is None else [state]


def _arrays(pieces: list[KeyPiece]) -> list[mx.array]:
    return [x for piece in pieces for x in (piece.k, piece.v)]


def _gradients(pieces: list[KeyPiece]) -> list[mx.array]:
    """Return the gradients of keys and values (B, G, N, h) of a tile, none of the last one."""
    each = [
        [
            (piece.grads or [mx.zeros(x.shape) for x in (piece.k, piece.v)])[which]
            for piece in pieces
        ]
        for which in range(2 if pieces else 0)
    ]
    return [mx.concatenate(parts, axis=2).astype(pieces[0].k.dtype) for parts in each]
