"""Bytes of one block's passes, over what lives when they begin."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.memory.backward import Backward
from edgetune.memory.block import Block
from edgetune.memory.forward import Forward
from edgetune.memory.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPass:
    """Bytes of one block's passes, over what lives when they begin.

    ``kept`` stays after a forward pass with gradients: what the backward pass needs and the
    output, but not the input, which the block before made. ``forward`` is that pass's peak,
    ``plain`` that of one without gradients (dropout and all), ``inference`` the same in an
    evaluation, ``backward`` that of the backward pass, what was
    kept included, ``again`` the same where the block is computed again for it.
    """

    kept: int
    forward: int
    plain: int
    inference: int
    backward: int
    again: int


def block_pass(block: Block) -> BlockPass:
    """Return the bytes of a block's passes."""
    plain, inference, graded = Ledger(), Ledger(), Ledger()
    Forward(block, plain, grad=False).run()
    Forward(block, inference, grad=False, training=False).run()
    saved = Forward(block, graded, grad=True).run()
    back = Ledger(graded.live)
    Backward(block, back, saved).run()
    return BlockPass(
        kept=graded.live,
        forward=graded.peak,
        plain=plain.peak,
        inference=inference.peak,
        backward=back.peak,
        again=back.peak - (saved.exit if block.rows.mlx else 0),  # which MLX leaves out
    )
