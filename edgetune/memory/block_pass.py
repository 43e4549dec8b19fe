"""One block's passes: its text run over sizes, forward, back, and without gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.eager import EagerOps
from edgetune.memory.ledger import Ledger
from edgetune.memory.sized import Sized, outside
from edgetune.memory.tiled_pass import TiledPass
from edgetune.methods.base import AdapterTensor
from edgetune.methods.planned import BlockKind, PlannedMethod
from edgetune.network.block import Block
from edgetune.shape import Linear, ModelShape
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPass:
    """Bytes of one block's passes, over what lives when they begin.

    ``kept`` stays after a forward pass with gradients: what the backward pass needs and the
    output, but not the input, which the block before made. ``forward`` is that pass's peak,
    ``plain`` that of one without gradients (dropout and all), ``inference`` the same in an
    evaluation, ``backward`` that of the backward pass, what was
    kept included. ``again`` is the peak of both where the block is computed again for it.
    """

    kept: int
    forward: int
    plain: int
    inference: int
    backward: int
    again: int


class SizedMethod(PlannedMethod[Sized]):
    """A method whose tensors are only sizes."""

    def with_tensors(
        self, tensors: Sequence[AdapterTensor], *, grad: bool, training: bool
    ) -> SizedMethod:
        """Return the same method for one pass of the block that has these tensors."""
        sized = {
            tensor.name: outside(tensor.shape, FLOAT32_BYTES, needs=grad and tensor.trained)
            for tensor in tensors
        }
        return self.of_pass(sized, training=training)


ONE = BatchShape(
    batch=1, context=1, width=FLOAT32_BYTES, product=FLOAT32_BYTES, dense=False,
    stored=FLOAT32_BYTES, recast=False, dropout=False, keeps_scratch=True,
)  # fmt: skip
"""A single token: for what does not depend on rows."""

LASTING = 2
"""Numbers that are kept for each norm of a row: the norm, and the square of the frozen part."""


def beside(
    own: SizedMethod, shape: ModelShape, kinds: Sequence[BlockKind]
) -> tuple[int, frozenset[Linear]]:
    """Return the bytes that a method keeps beside its tensors, and which frozen projections are
    multiplied with.
    """
    passes, lasting, frozen = Passes(own, shape, ONE, quantized=False), 0, frozenset[Linear]()
    for kind, count in Counter(kinds).items():
        ops, _, used = passes.run(kind, Ledger(), grad=False, training=False)
        kept = sum(norms.nbytes for norms in used.kept.norms.values())
        lasting += count * LASTING * kept
        frozen |= ops.multiplied
    return lasting, frozen


class Passes:
    """The passes of a method's blocks on rows of one shape."""

    def __init__(
        self, own: SizedMethod, shape: ModelShape, rows: BatchShape, *, quantized: bool
    ) -> None:
        """Prepare for the kinds of blocks that there are."""
        self.own, self.shape, self.rows, self.quantized = own, shape, rows, quantized

    def of(self, kind: BlockKind) -> BlockPass:
        """Return the bytes of a block's passes."""
        whole = self._whole(kind)
        if not self.rows.tile or not self.shape.blocks[kind.layer].splits:
            return whole
        tiled = TiledPass(
            self.shape, kind.layer, self.rows, self.quantized,
            lambda grad, training: self.own.with_tensors(
                kind.tensors, grad=grad, training=training
            ),
        )  # fmt: skip
        plain, again = tiled.forward(training=True), tiled.again(goes_on=kind.goes_on)
        inference = tiled.forward(training=False) if self.own.spec.draws else plain
        return replace(whole, plain=plain, inference=inference, again=again)

    def _whole(self, kind: BlockKind) -> BlockPass:
        """Return the bytes of a block that is computed at once."""
        plain = self._ungraded(kind, training=True)
        inference = self._ungraded(kind, training=False) if self.own.spec.draws else plain
        graded = Ledger()
        ops, out, own = self.run(kind, graded, grad=True, training=True)
        kept, forward = graded.live, graded.peak
        graded.peak = kept
        leaves = (*own.tensors.values(), *(() if kind.gives_first else ops.borrowed))
        ends = [out, *(each for each in ops.lending if each.needs)]
        del ops.lending
        left = ops.tape.backward(
            {each.key: None for each in ends}, frozenset(each.key for each in leaves)
        )
        del left
        back = graded.peak
        return BlockPass(
            kept=kept, forward=forward, plain=plain, inference=inference,
            backward=back, again=back if forward <= back else max(self._again(kind), back),
        )  # fmt: skip

    def run(
        self, kind: BlockKind, ledger: Ledger, *, grad: bool, training: bool, again: bool = False
    ) -> tuple[EagerOps, Sized, SizedMethod]:
        """Run a block's text; return its operations, its output and its method.

        ``again``: as it is run for the way back.
        """
        ops = EagerOps(
            self.shape, self.rows, ledger, kind.layer, quantized=self.quantized,
            to_lender=grad and kind.to_lender,
        )  # fmt: skip
        own = self.own.with_tensors(kind.tensors, grad=grad, training=training)
        if again:
            ops.unread = own.unread(ops.own)
        size = (self.rows.batch, self.rows.context, self.shape.stream_size)
        entry = outside(size, self.rows.width, needs=grad and kind.goes_on)
        return ops, Block(ops, self.shape, kind.layer, own).output(entry), own

    def _again(self, kind: BlockKind) -> int:
        """Return the peak of a forward pass without what no gradient reads."""
        ledger = Ledger()
        self.run(kind, ledger, grad=True, training=True, again=True)
        return ledger.peak

    def _ungraded(self, kind: BlockKind, *, training: bool) -> int:
        ledger = Ledger()
        self.run(kind, ledger, grad=False, training=training)
        return ledger.peak
