"""What Gated DeltaNet's mixer takes: pieces of tokens one after another, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from edgetune.mixer import PIECE
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.speed.attention import ATTENTION_PASSES
from edgetune.speed.counted import Counted, Counting
from edgetune.storage import FLOAT32_BYTES

PIECE_AHEAD, PIECE_BACK = 134, 517
"""Operations by which the delta rule takes a piece of tokens, one way and back."""


def mixed(
    ops: Counting, mixer: GatedDelta, inputs: Sequence[Counted], own: Mapping[str, Counted]
) -> Counted:
    """Return what is read (B, S, H V)."""
    x = inputs[0]
    out = ops.made((*x.shape[:-1], mixer.values), x.width, (*inputs, *own.values()))
    tokens, pieces = x.numbers // x.shape[-1], ceil((x.shape[1] - ops.batch.read) / PIECE)
    flops = 2 * tokens * mixer.products
    numbers = mixer.channels * (3 + 2 * mixer.taps) + 8 * PIECE * mixer.value_heads
    numbers += 12 * mixer.value_heads * (mixer.key_dim + mixer.value_dim)
    moved = FLOAT32_BYTES * tokens * numbers
    ops.ahead.wide += flops
    ops.ahead.count(7 + PIECE_AHEAD * pieces, moved)
    if out.needs:
        ops.back.wide += (ATTENTION_PASSES - 1) * flops
        launches = PIECE_BACK * pieces - 108  # a state less than pieces
        ops.back.count(launches, 3 * moved)
    return out
