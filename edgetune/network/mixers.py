"""The text of the mixers that are not attention, between a block's norm and its stream.

B rows, S positions, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetune.network.ops import A

if TYPE_CHECKING:
    from edgetune.network.block import Block


def convolved(block: Block[A], x: A) -> A:
    """Return what a short convolution (LFM2) makes of x (B, S, D)."""
    return block.project("conv_out", block.method.mix(block, [block.project("conv_in", x)]))
