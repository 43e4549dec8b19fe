"""What short convolutions take: sums of products, tap by tap, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgetune.network.mixers.short_convolution import ShortConvolution
from edgetune.speed.counted import Counted, Counting
from edgetune.storage import FLOAT32_BYTES


def mixed(
    ops: Counting,
    mixer: ShortConvolution,
    inputs: Sequence[Counted],
    own: Mapping[str, Counted],
) -> Counted:
    """Return ``c * convolution(b * u)`` (B, S, D) of x (B, S, 3 D)."""
    (x,), rows = inputs, ops.batch
    out = ops.made((*x.shape[:-1], mixer.channels), x.width, (x, *own.values()))
    one, others = FLOAT32_BYTES * out.numbers, mixer.taps - 1
    spans = 1 if rows.documents == 1 else rows.batch * rows.documents
    ops.ahead.count(14 + 3 * others * spans, (6 + 4 * others) * one)
    if out.needs:
        ops.back.count(29 + 6 * others * spans, (16 + 8 * others) * one)
    return out
