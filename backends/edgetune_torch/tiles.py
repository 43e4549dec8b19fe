"""A block computed tile by tile over its rows: exact, with the activations of one tile at a time.

The way forward goes from the first tile to the last, each leaving its keys and values for those
after it. The way back makes keys and values of all tiles again, then goes from the last tile to
the first: by then all queries that see a tile's keys have given these their gradients. Nothing of
a block but its input, the gradient, keys and values is as long as a row.

A mixer that is not attention carries a state instead, and keys and values may be lent to other
blocks; blocks with such are computed whole.

B rows, S positions, D hidden size, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgetune.network.adaptation import Adaptation
from edgetune_torch.tile_attention import BlockKeys, Tile
from edgetune_torch.token_layout import TokenLayout

if TYPE_CHECKING:
    from edgetune_torch.decoder import Decoder


def spans(positions: int, size: int) -> list[slice]:
    """Return the tiles of ``size`` positions, the last one shorter; 0: all positions in one."""
    step = size or max(1, positions)
    return [slice(at, min(at + step, positions)) for at in range(0, positions, step)]


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
        keys, out = self._keys(layer), torch.empty_like(x)
        for span in self._spans:
            place = self._place(span, keys)
            out[:, span] = self.decoder.block(layer, _part(x, span), place, self.method)
        return out

    def backward(self, layer: int, x: Tensor, grad: Tensor, *, goes_on: bool) -> Tensor:
        """Add a block's gradients to those of what is trained; return its input's (B, S, D).

        It takes the place of ``grad``, the gradient of the output. If it does not go on, nothing
        wants it, and what is returned is without meaning.
        """
        keys = self._keys_of_all(layer, x).with_gradients()
        assert keys.k_grad is not None
        assert keys.v_grad is not None
        for span in reversed(self._spans):
            place = self._place(span, keys)
            assert place.tile is not None
            own = _part(x, span).detach().requires_grad_(goes_on)
            out = self.decoder.block_again(layer, own, place, self.method)
            assert place.tile.own is not None
            gathered = zip(place.tile.own, (keys.k_grad, keys.v_grad), strict=True)
            kept = [(x, each[:, :, span]) for x, each in gathered if x.requires_grad]
            del gathered
            grads = [_part(grad, span), *(each.to(grad.dtype) for _, each in kept)]
            torch.autograd.backward([out, *(x for x, _ in kept)], grads)
            del out, kept, grads
            if own.grad is not None:
                grad[:, span] = own.grad
        return grad

    @torch.no_grad()
    def _keys_of_all(self, layer: int, x: Tensor) -> BlockKeys:
        """Return keys and values of all tiles; those of the last are seen by itself alone."""
        keys = self._keys(layer)
        for span in self._spans[:-1]:
            place = self._place(span, keys)
            self.decoder.leave_keys(layer, _part(x, span), place, self.method)
        return keys

    def _keys(self, layer: int) -> BlockKeys:
        block, (rows, positions) = self.decoder.shape.blocks[layer], self.layout.positions.shape
        size = (rows, block.kv_heads, positions, block.head_dim)
        return BlockKeys.empty(size, self.layout.dtype, self.layout.positions.device)

    def _place(self, span: slice, keys: BlockKeys) -> TokenLayout:
        return self.layout.of_span(span, Tile(span.start, span.stop, keys))

    @property
    def _spans(self) -> list[slice]:
        return spans(self.layout.positions.shape[1], self.decoder.tile)


def _part(x: Tensor, span: slice) -> Tensor:
    """Return some positions of x (B, S, D), their rows one after another in memory."""
    return x[:, span].contiguous()
