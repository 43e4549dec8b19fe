"""The passes of a block that MLX computes tile by tile: its text run over the graphs of its last tiles.

All tiles but the last, which may be shorter, are alike but for how many keys they see; and later
tiles give no gradients to the keys of the last one. So the last and the one before it stand for all.

B rows, S positions, D hidden size, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.lazy.arrays import into_sum
from edgetune.memory.lazy.elementwise import cast
from edgetune.memory.lazy.evaluation import Evaluation
from edgetune.memory.lazy.gradients import vjp
from edgetune.memory.lazy.graph import Array, Operation, given
from edgetune.memory.lazy.method import LazyMethod
from edgetune.memory.lazy.ops import LazyOps
from edgetune.memory.lazy.tile_attention import KEYS, LazyTile
from edgetune.memory.lazy.views import concatenate, contiguous, cut, updated
from edgetune.memory.lazy.weights import FrozenBlock, frozen_block
from edgetune.memory.ledger import Ledger
from edgetune.methods.planned import BlockKind
from edgetune.network.block import Block
from edgetune.network.tiles import spans
from edgetune.shape import ModelShape
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class TiledGraphs:
    """A kind of block over rows that are computed in tiles."""

    own: LazyMethod
    shape: ModelShape
    kind: BlockKind
    rows: BatchShape
    quantization: str
    streamed: bool
    ahead: int

    def forward(self, *, training: bool) -> int:
        """Return the peak of a pass of which nothing is kept, over the block's input."""
        return max(self._forward(tile, training=training) for tile in self._last)

    def again(self, *, summed: bool) -> int:
        """Return the peak of computing the block again and of its way back.

        It is over the block's input and the gradient of its output, whose place that of the input
        takes. ``summed``: the gradients of what the block trains are counted elsewhere.
        """
        return max(self._again(tile, summed=summed) for tile in self._last)

    @property
    def _last(self) -> list[slice]:
        """The last tiles: one, and where it may be shorter or sees no gradients, the one before."""
        return spans(self.rows.context, self.rows.tile)[-2:]

    def _forward(self, span: slice, *, training: bool) -> int:
        tile, frozen = self._tile(span), self._frozen()
        entry, tensors = given(self._states(span), self.rows.width), self._tensors()
        out = self._output(self._reading(span, entry), tensors, tile, frozen, training=training)
        last = span.stop == self.rows.context
        behind = [] if last or tile.behind is None else [tile.behind]
        asked = [out, *([] if last else tile.left()), *behind]
        before = replace(self.rows, context=span.start).activation_bytes(self.shape.hidden_size)
        held = before + self._keys(span.start, self.rows.width) + self._read(frozen)
        held += self._carried(min(span.start, 1))
        return held + self._peak(asked, [])

    def _again(self, span: slice, *, summed: bool) -> int:
        last = span.stop == self.rows.context
        tile, frozen, tensors = self._tile(span), self._frozen(), self._tensors()
        trained = [each.name for each in self.kind.tensors if each.trained]
        states = self._states(span)
        made = _made if self._in_parts else given
        entry, grad = made(states, self.rows.width), made(states, self.rows.width)
        if not self.kind.goes_on:
            grad = given(states, self.rows.width)

        read = self._reading(span, entry)

        state = [] if tile.state is None else [tile.state]

        def output(x: Array, *inputs: Array) -> tuple[Array, ...]:
            over = tensors | dict(zip(trained, inputs[len(state) :], strict=True))
            tile.state = inputs[0] if state else None
            out = self._output(x, over, tile, frozen, training=True)
            return (out,) if last else (out, *tile.passed)

        grads = [grad, *([] if last else self._later_gradients(span))]
        inputs = [read, *state, *(tensors[name] for name in trained)]
        x_grad, *found = vjp(output, inputs, grads)
        of_state, of_trained = found[: len(state)], found[len(state) :]
        sums = [into_sum(each) for each in reversed(of_trained)]
        passed = self._passed(span, x_grad, last=last) if self.kind.goes_on else []
        asked = [*sums, *passed, *of_state, *tile.sums]
        begun = [x for x in (entry, grad) if x.operation is not None]
        held = self._keys(span.start, self.rows.width) + self._key_gradients(span)
        held += self._read(frozen) + self._carried(ceil(span.start / self.rows.tile) + (not last))
        held += 0 if summed else self._sums()
        return held + self._peak(asked, begun) - self._gone(span, begun)

    def _sums(self) -> int:
        """Return the bytes of the gradients of what no later block has given any to."""
        shared = self.own.spec.everywhere if self.kind.adds else lambda _: False
        own = (each for each in self.kind.tensors if each.trained and not shared(each.name))
        return FLOAT32_BYTES * sum(each.size for each in own)

    @property
    def _in_parts(self) -> bool:
        """Whether hidden states are arrays of tiles, each of which can go by itself."""
        return all(block.splits for block in self.shape.kinds)

    def _gone(self, span: slice, begun: Sequence[Array]) -> int:
        """Return the bytes that are counted with the input and the gradient, and are gone.

        They are the inputs of the tiles behind, and what is counted with the pass of this one.
        """
        there, behind = sum(each.nbytes for each in begun), self.rows.context - span.stop
        gone = replace(self.rows, context=behind).activation_bytes(self.shape.hidden_size)
        return there + (gone if self._in_parts else 0)

    @property
    def _attends(self) -> bool:
        return self.shape.blocks[self.kind.layer].attention is not None

    def _before(self, span: slice) -> int:
        """Return how many tokens before a tile are computed with it."""
        start: int = span.start
        return min(start, self.shape.blocks[self.kind.layer].reach)

    def _reading(self, span: slice, entry: Array) -> Array:
        """Return a tile of the block's input, with what of the tile before is computed with it."""
        before = self._before(span)
        if not before:
            return entry
        others = given((entry.shape[0], before, entry.shape[2]), entry.width)
        return concatenate([others, entry], 1)

    def _passed(self, span: slice, grad: Array, *, last: bool) -> list[Array]:
        """Return the gradients of a tile's own input, and of what it reads of the tile before."""
        before, reach = self._before(span), self.shape.blocks[self.kind.layer].reach
        own = cut(grad, 1, before, grad.shape[1])
        if reach and not last:
            early = given((grad.shape[0], reach, grad.shape[2]), grad.width)
            own = updated(own, early, adds=True)
        return [contiguous(own), *([contiguous(cut(grad, 1, 0, before))] if before else [])]

    def _tile(self, span: slice) -> LazyTile:
        """Return a tile with what is read of those before."""
        tile = LazyTile(span.start, self.rows.tile, before=self._before(span))
        if span.start and self._carries:
            tile.state = given(self._state, FLOAT32_BYTES)
        return tile

    @property
    def _carries(self) -> bool:
        return self.shape.blocks[self.kind.layer].carries

    @property
    def _state(self) -> tuple[int, ...]:
        """The size of the states of all rows."""
        mixer = self.shape.blocks[self.kind.layer].recurrent
        return () if mixer is None else (self.rows.batch, *mixer.state_size)

    def _carried(self, tiles: int) -> int:
        """Return the bytes of the states behind so many tiles."""
        return tiles * prod(self._state) * FLOAT32_BYTES if self._carries else 0

    def _later_gradients(self, span: slice) -> list[Array]:
        """Return the gradients that later tiles gave to what they read of a tile."""
        if self._carries:
            return [given(self._state, FLOAT32_BYTES)]
        return self._own_gradients(span) if self._attends else []

    def _own_gradients(self, span: slice) -> list[Array]:
        """Return the gradients that later tiles gave to keys and values of a tile."""
        pieces = spans(span.stop - span.start, KEYS)
        return [
            cast(
                concatenate(
                    [given(self._heads(each.stop - each.start), FLOAT32_BYTES) for each in pieces],
                    2,
                ),
                self.rows.width,
            )
            for _ in range(2)
        ]

    def _output(
        self, x: Array, tensors: dict[str, Array], tile: LazyTile, frozen: FrozenBlock,
        *, training: bool,
    ) -> Array:  # fmt: skip
        """Return the output of a tile."""
        rows = replace(self.rows, context=x.shape[1], tile=0)
        ops = LazyOps(self.shape, rows, frozen, self.kind.layer, tile=tile)
        own = self.own.with_tensors(tensors, training=training)
        out = Block(ops, self.shape, self.kind.layer, own).output(x)
        before = x.shape[1] - (min(self.rows.context - tile.start, self.rows.tile))
        return contiguous(cut(out, 1, before, x.shape[1])) if before else out

    def _peak(self, asked: Sequence[Array], begun: Sequence[Array]) -> int:
        """Return the peak of an evaluation before which some arrays are there."""
        ledger = Ledger()
        evaluation = Evaluation(ledger, asked, ahead=self.ahead)
        for each in begun:
            evaluation.evaluate(each)
        evaluation.settle()
        for each in asked:
            evaluation.evaluate(each)
        return ledger.peak

    def _frozen(self) -> FrozenBlock:
        """Return the block's frozen tensors, which stay for all tiles."""
        layer = self.kind.layer
        return frozen_block(self.shape, layer, self.rows, self.quantization, streamed=False)

    def _read(self, frozen: FrozenBlock) -> int:
        """Return the bytes of the frozen tensors that were read for this pass."""
        return sum(part.nbytes for part in frozen.parts) if self.streamed else 0

    def _tensors(self) -> dict[str, Array]:
        return {each.name: given(each.shape, FLOAT32_BYTES) for each in self.kind.tensors}

    def _key_gradients(self, span: slice) -> int:
        """Return the bytes of the gradients of keys and values, those of a tile's own with them."""
        rule, positions = self.shape.blocks[self.kind.layer].attention, span.start
        if rule is not None and rule.window is not None:
            piece = min(KEYS, self.rows.tile)
            positions = min(positions, -(-(rule.window - 1) // piece) * piece)
        own = 0 if span.stop == self.rows.context else span.stop - span.start
        return self._keys(positions + own, FLOAT32_BYTES)

    def _keys(self, positions: int, width: int) -> int:
        """Return the bytes of keys and values of so many positions of all rows."""
        block = self.shape.blocks[self.kind.layer]
        return 2 * self.rows.batch * positions * block.keys * width

    def _states(self, span: slice) -> tuple[int, int, int]:
        return (self.rows.batch, span.stop - span.start, self.shape.hidden_size)

    def _heads(self, positions: int) -> tuple[int, ...]:
        block = self.shape.blocks[self.kind.layer]
        return (self.rows.batch, block.kv_heads, positions, block.head_dim)


def _made(shape: tuple[int, ...], width: int) -> Array:
    """Return an array that is there before an evaluation, and goes with its last use in it."""
    return Array(shape, width, Operation((), nbytes=prod(shape) * width))
