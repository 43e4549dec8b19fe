"""What Mamba-2's mixer takes: a few pieces of tokens at a time, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from edgetune.mixer import PIECE, SPAN
from edgetune.network.mixers.state_space import StateSpace
from edgetune.speed.attention import ATTENTION_PASSES
from edgetune.speed.counted import Counted, Counting
from edgetune.storage import FLOAT32_BYTES

SPAN_AHEAD, SPAN_BACK, CARRIED = 110, 372, 6
"""Operations by which a span of pieces is taken, and those that carry its state past each."""


def mixed(
    ops: Counting, mixer: StateSpace, inputs: Sequence[Counted], own: Mapping[str, Counted]
) -> Counted:
    """Return what is read (B, S, H V)."""
    x = inputs[0]
    out = ops.made((*x.shape[:-1], mixer.values), x.width, (*inputs, *own.values()))
    tokens, positions = x.numbers // x.shape[-1], x.shape[1] - ops.batch.read
    spans, pieces = ceil(positions / SPAN), ceil(positions / PIECE)
    flops = 2 * tokens * mixer.products
    numbers = mixer.channels * (3 + 2 * mixer.taps) + 8 * PIECE * mixer.heads
    moved = FLOAT32_BYTES * tokens * (numbers + 12 * mixer.values)
    ops.ahead.wide += flops
    ops.ahead.count(7 + SPAN_AHEAD * spans + CARRIED * pieces, moved)
    if out.needs:
        ops.back.wide += (ATTENTION_PASSES - 1) * flops
        launches = SPAN_BACK * spans - 73  # a state less than spans
        ops.back.count(launches + 2 * CARRIED * pieces, 3 * moved)
    return out
