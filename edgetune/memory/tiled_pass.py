"""The passes of a block that is computed tile by tile, run over the sizes of its largest tiles.

All tiles but the last, which may be shorter, are alike but for how many keys they see, so the last
of them stands for all. A shorter one behind it sees more keys with fewer queries.

B rows, S positions, N of a tile, D hidden size, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.eager import EagerOps
from edgetune.memory.ledger import Ledger
from edgetune.memory.sized import Gradient, Sized, Storage, outside
from edgetune.memory.tile_attention import SizedTile
from edgetune.methods.adapted import Adapted
from edgetune.network.block import Block
from edgetune.shape import ModelShape
from edgetune.storage import FLOAT32_BYTES

Methods = Callable[[bool, bool], Adapted[Sized]]
"""From whether gradients are wanted, and whether this is training, to the method of a pass."""


@dataclass(frozen=True, slots=True)
class TiledPass:
    """One block over rows that are computed in tiles."""

    shape: ModelShape
    layer: int
    rows: BatchShape
    quantized: bool
    method: Methods

    def forward(self, *, training: bool) -> int:
        """Return the peak of a pass without gradients, over the block's input."""
        return max(self._forward(tile, training=training) for tile in self._tiles())

    def again(self, *, goes_on: bool) -> int:
        """Return the peak of computing the block again and of its way back.

        It is over the block's input and the gradient of its output, whose place that of the input
        takes.
        """
        return max(self._again(tile, goes_on=goes_on) for tile in self._tiles())

    def _tiles(self) -> list[range]:
        """Return the positions of the last tile of full size, and of a shorter one behind it."""
        size, positions = self.rows.tile, self.rows.context
        end = positions // size * size
        last = [range(end, positions)] if end < positions else []
        return [range(end - size, end), *last]

    def _forward(self, tile: range, *, training: bool) -> int:
        ledger = Ledger()
        kept = [
            Storage(ledger, self._keys(self.rows.width)),
            Storage(ledger, self._states(self.rows)),
            Storage(ledger, self._carried(min(tile.start, 1))),
        ]
        self._tile(tile, ledger, self.method(False, training), [], graded=False)
        kept.clear()
        return ledger.peak

    def _again(self, positions: range, *, goes_on: bool) -> int:
        ledger = Ledger()
        held = [
            Storage(ledger, self._keys(self.rows.width)),
            Storage(ledger, self._keys(FLOAT32_BYTES)),
            Storage(ledger, self._carried(-(-positions.start // self.rows.tile))),
        ]
        method = self.method(True, True)
        ops, out, tile = self._tile(positions, ledger, method, held, needs=goes_on)
        reach = self._before(positions)
        # the gradient of the tile's output, behind zeros where its input reaches further
        held.append(self._copied(ledger, ops.batch, always=reach > 0))
        grads: dict[int, Gradient] = {out.key: None}
        for own in tile.own:
            if own.needs:
                narrow = own.width != FLOAT32_BYTES
                grads[own.key] = Storage(ledger, own.nbytes) if narrow else None
        if tile.behind is not None and positions.stop < self.rows.context:
            grads[tile.behind.key] = Storage(ledger, tile.behind.nbytes)
        held += [grad for grad in grads.values() if isinstance(grad, Storage)]
        leaves = frozenset(each.key for each in method.tensors.values())
        left = ops.tape.backward(grads, leaves)
        del left
        held.clear()
        return ledger.peak

    def _tile(
        self, positions: range, ledger: Ledger, method: Adapted[Sized], held: list[Storage], *,
        graded: bool = True, needs: bool = False,
    ) -> tuple[EagerOps, Sized, SizedTile]:  # fmt: skip
        """Run the block's text over one tile; return operations, output, and the tile.

        What lives with the tile joins ``held``.
        """
        rows = replace(self.rows, context=len(positions) + self._before(positions), tile=0)
        read, state = self._before(positions), None
        if positions.start and self._carried(1):
            state = outside((self._carried(1) // FLOAT32_BYTES,), FLOAT32_BYTES, needs=graded)
        tile = SizedTile(self.rows.context, positions.start, graded, read=read, state=state)
        ops = EagerOps(self.shape, rows, ledger, self.layer, quantized=self.quantized, tile=tile)
        size = (rows.batch, rows.context, self.shape.hidden_size)
        held += [self._tables(ledger, rows), self._copied(ledger, rows)]
        entry = outside(size, rows.width, needs=needs)
        return ops, Block(ops, self.shape, self.layer, method).output(entry), tile

    def _copied(self, ledger: Ledger, rows: BatchShape, *, always: bool = False) -> Storage:
        """Return a tile of hidden states, which is a copy where there are several rows."""
        return Storage(ledger, self._states(rows) if always or rows.batch > 1 else 0)

    def _before(self, positions: range) -> int:
        """Return how many tokens before a tile are computed with it."""
        return min(positions.start, self.shape.blocks[self.layer].reach)

    def _tables(self, ledger: Ledger, rows: BatchShape) -> Storage:
        """Return the tables of the rotation of a tile's positions."""
        rule = self.shape.blocks[self.layer].attention
        both = () if rule is None else (rule.rotary, rule.query_rotary)
        rotaries = {each for each in both if each is not None}
        return Storage(ledger, rows.activation_bytes(sum(2 * x.dimensions for x in rotaries)))

    def _carried(self, tiles: int) -> int:
        """Return the bytes of the states behind so many tiles."""
        mixer = self.shape.blocks[self.layer].recurrent
        state = 0 if mixer is None else mixer.state
        return FLOAT32_BYTES * tiles * self.rows.batch * state

    def _keys(self, width: int) -> int:
        """Return the bytes of the keys and values of all tiles."""
        return 2 * self.rows.tokens * self.shape.blocks[self.layer].keys * width

    def _states(self, rows: BatchShape) -> int:
        return rows.activation_bytes(self.shape.hidden_size)
