"""Bytes of one block's passes, over what lives when they begin."""

from __future__ import annotations

from edgetune.memory.backward import Backward
from edgetune.memory.block import Block
from edgetune.memory.block_pass import BlockPass
from edgetune.memory.forward import Forward
from edgetune.memory.ledger import Ledger


def block_pass(block: Block) -> BlockPass:
    """Return the bytes of a block's passes."""
    plain, inference, graded = Ledger(), Ledger(), Ledger()
    Forward(block, plain, grad=False).run()
    Forward(block, inference, grad=False, training=False).run()
    saved = Forward(block, graded, grad=True).run()
    back = Ledger(graded.live)
    way = Backward(block, back, saved)
    way.run()
    not_made = (
        saved.output if block.rows.lazy else 0
    )  # the output, when the block is computed again
    return BlockPass(
        kept=graded.live,
        forward=graded.peak,
        plain=plain.peak,
        inference=inference.peak,
        backward=max(way.mlp_peak, back.peak),
        once_more=graded.peak,
        again=way.mlp_peak - not_made,
        after_mlp=back.peak - not_made,
    )
