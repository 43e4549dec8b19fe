"""What the parts of a model take: the network's text, run over values that are only counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from math import ceil

from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.planned import BlockKind, PlannedMethod, kinds
from edgetune.network.block import Block
from edgetune.shape import ModelShape
from edgetune.speed.counted import Counted, outside, trained
from edgetune.speed.ops import CountedOps
from edgetune.speed.rows import Rows
from edgetune.speed.tally import Tally
from edgetune.storage import FLOAT32_BYTES

CUT = 1
"""Operations by which a block is cut off from the others, one way and back."""

TOKEN = 8
"""Bytes of a token's number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What one block takes: a pass ``forward``, its way ``back``, and for each ``state`` of what is
    trained. ``keys`` are those of all tiles, which are made before the way back; ``left_out`` is
    what a pass leaves out that is computed again for the way back.
    """

    forward: Tally
    back: Tally
    state: Tally
    keys: Tally = field(default_factory=Tally)
    left_out: Tally = field(default_factory=Tally)


class Works:
    """The parts of a model under a method, over rows of any shape."""

    def __init__(self, shape: ModelShape, method: Method) -> None:
        """Look for the blocks that are alike."""
        tensors = method.tensors(shape)
        self.shape = shape
        self.kinds = kinds(method, shape, tensors)
        self.sizes = [tensor.size for tensor in tensors if tensor.trained]
        self.first = method.first_layer(shape)
        self.trains_input = method.trains_input
        self.rotaries = len(shape.rotaries)
        self._own: PlannedMethod[Counted] = PlannedMethod(method, shape, {})
        prefix = shape.block_prefix.split("{}")[0]
        self._outer = [each for each in tensors if not each.name.startswith(prefix)]
        self.block = cache(self._block)
        self.embedding = cache(self._embedding)
        self.final_norm = cache(self._final_norm)

    def _block(self, kind: BlockKind, rows: Rows, tiles: int = 1) -> Counts:
        """Return what a block takes of which each row is computed in so many tiles."""
        if tiles == 1 or not self.shape.blocks[kind.layer].splits:
            ops = self._run(kind, rows)
            return Counts(forward=ops.ahead, back=ops.back, state=ops.state, left_out=ops.left_out)
        block = self.shape.blocks[kind.layer]
        tile = rows.of_tile(ceil(rows.context / tiles), block.reach)
        ops, keys = self._run(kind, tile), Tally()
        if block.leaves:
            keys = self._leaving(kind, tile)
        forward, back, all_keys, left_out = Tally(), Tally(), Tally(), Tally()
        parts = (forward, ops.ahead), (back, ops.back), (all_keys, keys), (left_out, ops.left_out)
        for whole, one in parts:
            whole.add(one, tiles)
        return Counts(forward=forward, back=back, state=ops.state, keys=all_keys, left_out=left_out)

    def _run(self, kind: BlockKind, rows: Rows) -> CountedOps:
        """Run a block's text; return its operations."""
        ops = CountedOps(self.shape, rows, kind.layer, to_lender=kind.to_lender)
        ops.unread = self._own.unread(ops.own)
        self._at_work(ops, kind).output(_states(self.shape, rows, needs=kind.goes_on))
        ops.ahead.launches += CUT
        ops.back.launches += CUT if ops.back.launches else 0
        return ops

    def _leaving(self, kind: BlockKind, rows: Rows) -> Tally:
        """Return what it takes to make what later tiles read of one, without gradients."""
        ops = CountedOps(self.shape, rows, kind.layer)
        self._at_work(ops, kind).leave(_states(self.shape, rows, needs=False))
        return ops.ahead

    def _at_work(self, ops: CountedOps, kind: BlockKind) -> Block[Counted]:
        method = self._own.of_pass(_counted(kind.tensors), training=True)
        return Block(ops, self.shape, kind.layer, method)

    def _embedding(self, rows: Rows) -> Counts:
        """Return what the input of the first block takes, and what blocks read besides."""
        ops = CountedOps(self.shape, rows)
        end = self._end(ops)
        end.entered(end.embedded(outside((rows.batch, rows.context), TOKEN)))
        own = self.shape.per_layer
        if own is not None:
            numbers = rows.tokens * self.shape.layers * own.size
            ops.ahead.products += 2 * numbers * self.shape.hidden_size
            ops.ahead.count(20, 40 * numbers)
        return Counts(forward=ops.ahead, back=ops.back, state=ops.state)

    def _final_norm(self, rows: Rows) -> Counts:
        """Return what the input of the head takes, of all rows at once."""
        ops = CountedOps(self.shape, rows)
        self._end(ops).normed(_states(self.shape, rows, needs=True))
        return Counts(forward=ops.ahead, back=ops.back, state=ops.state)

    def _end(self, ops: CountedOps) -> Block[Counted]:
        return Block(ops, self.shape, None, self._own.of_pass(_counted(self._outer), training=True))


def _counted(tensors: Iterable[AdapterTensor]) -> dict[str, Counted]:
    return {x.name: trained(x.shape, FLOAT32_BYTES, needs=x.trained) for x in tensors}


def _states(shape: ModelShape, rows: Rows, *, needs: bool) -> Counted:
    return Counted((rows.batch, rows.context, shape.stream_size), rows.width, needs)
