"""A block computed tile by tile over its rows: exact, with the activations of one tile at a time.

The way forward goes from the first tile to the last, each leaving its keys and values for those
after it. The way back makes keys and values of all tiles again, then goes from the last tile to
the first: by then all queries that see a tile's keys have given these their gradients. Nothing of
a block but its input, the gradient, keys and values is as long as a row.

A convolution reads a few tokens before its own: a tile is computed with them, and they get gradients
of it. A state is carried from tile to tile; on the way back those between tiles are made again with
the keys, and their gradients go from the last tile to the first. Blocks that lend keys and values or
read lent ones, and those with a mixer beside attention, are computed whole.

B rows, S positions, D hidden size, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgetune.network.adaptation import Adaptation
from edgetune.network.tiles import reaching, spans
from edgetune_torch.tile_attention import BlockKeys, Tile
from edgetune_torch.token_layout import TokenLayout

if TYPE_CHECKING:
    from edgetune_torch.decoder import Decoder


@dataclass(frozen=True, slots=True)
class TiledBlocks:
    """The blocks of a decoder in one pass over a micro-batch."""

    decoder: Decoder
    layout: TokenLayout
    method: Adaptation[Tensor]

    def splits(self, layer: int) -> bool:
        """Return whether a block is computed in more than one tile.

        Not behind a cache: its keys are those of other passes.
        """
        behind = any(cache.length for cache in self.layout.caches)
        return self.decoder.shape.blocks[layer].splits and len(self._spans) > 1 and not behind

    @torch.no_grad()
    def forward(self, layer: int, x: Tensor) -> Tensor:
        """Return the output of a block (B, S, D) for its input, without gradients."""
        if not self.splits(layer):
            return self.decoder.block(layer, x, self.layout, self.method)
        keys, out, state = self._keys(layer), torch.empty_like(x), None
        for span in self._spans:
            tile = self._tile(layer, span, keys, state)
            made = self._output(layer, _part(x, tile.span), tile)
            out[:, span], state = made[:, tile.read :], tile.behind
            del made, tile  # they must not live on beside the next ones
        return out

    def backward(self, layer: int, x: Tensor, grad: Tensor, *, goes_on: bool) -> Tensor:
        """Add a block's gradients to those of what is trained; return its input's (B, S, D).

        It takes the place of ``grad``, the gradient of the output. If it does not go on, nothing
        wants it, and what is returned is without meaning.
        """
        keys, states = self._left(layer, x)
        keys, early, later = keys.with_gradients(), None, None
        for span in reversed(self._spans):
            tile = self._tile(layer, span, keys, states.pop())
            own = _part(x, tile.span).detach().requires_grad_(goes_on)
            place = self.layout.of_span(tile.span, tile)
            out = self.decoder.block_again(layer, own, place, self.method)
            gathered = [*zip(tile.own, (each[:, :, span] for each in keys.grads), strict=False)]
            if tile.behind is not None and later is not None:
                gathered.append((tile.behind, later))
            kept = [(x, each) for x, each in gathered if x.requires_grad]
            del gathered
            grads = [_behind(grad, span, tile.read), *(each.to(x.dtype) for x, each in kept)]
            torch.autograd.backward([out, *(x for x, _ in kept)], grads)
            del out, kept, grads
            later = None if tile.state is None else tile.state.grad
            if own.grad is not None:
                grad[:, span] = own.grad[:, tile.read :]
                if early is not None:
                    grad[:, span.stop - early.shape[1] : span.stop] += early
                early = own.grad[:, : tile.read].clone() if tile.read else None
            del tile
        return grad

    @torch.no_grad()
    def _left(self, layer: int, x: Tensor) -> tuple[BlockKeys, list[Tensor | None]]:
        """Return keys and values of all tiles, and the state before each.

        Those of the last tile are seen by itself alone.
        """
        keys, states = self._keys(layer), list[Tensor | None]([None])
        leaves = self.decoder.shape.blocks[layer].leaves
        for span in self._spans[:-1]:
            tile = self._tile(layer, span, keys, states[-1])
            if leaves:
                place = self.layout.of_span(tile.span, tile)
                self.decoder.leave(layer, _part(x, tile.span), place, self.method)
            states.append(tile.behind)
        return keys, states

    def _keys(self, layer: int) -> BlockKeys:
        block, (rows, positions) = self.decoder.shape.blocks[layer], self.layout.positions.shape
        size = (rows, block.kv_heads, positions, block.head_dim)
        return BlockKeys.empty(size, self.layout.dtype, self.layout.positions.device)

    def _tile(self, layer: int, span: slice, keys: BlockKeys, state: Tensor | None) -> Tile:
        """Return a tile, with the positions before it that are computed with it."""
        read = reaching(span, self.decoder.shape.blocks[layer].reach)
        state = None if state is None else state.detach().requires_grad_(torch.is_grad_enabled())
        return Tile(read.start, span.stop, keys, read=span.start - read.start, state=state)

    def _output(self, layer: int, x: Tensor, tile: Tile) -> Tensor:
        place = self.layout.of_span(tile.span, tile)
        return self.decoder.block(layer, x, place, self.method)

    @property
    def _spans(self) -> list[slice]:
        return spans(self.layout.positions.shape[1], self.decoder.tile)


def _behind(grad: Tensor, span: slice, before: int) -> Tensor:
    """Return some positions of a gradient (B, S, D), and zeros for ``before`` positions before them."""
    if not before:
        return _part(grad, span)
    out = grad.new_zeros(len(grad), before + span.stop - span.start, grad.shape[2])
    out[:, before:] = grad[:, span]
    return out


def _part(x: Tensor, span: slice) -> Tensor:
    """Return some positions of x (B, S, D), their rows one after another in memory."""
    return x[:, span].contiguous()
