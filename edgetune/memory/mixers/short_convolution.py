"""Bytes of short convolutions, as the torch engine does them.

B rows, S positions, D channels, K taps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgetune.memory.elementary import Elementary
from edgetune.memory.sized import Gradient, Sized
from edgetune.network.mixers.short_convolution import ShortConvolution
from edgetune.storage import FLOAT32_BYTES


def mixed(
    ops: Elementary, mixer: ShortConvolution, inputs: Sequence[Sized], own: Mapping[str, Sized]
) -> Sized:
    """Return ``c * convolution(b * u)`` (B, S, D) of x (B, S, 3 D); the inputs alone are saved."""
    (x,), weight, bias = inputs, own["conv"], own.get("conv_bias")
    ledger, channels = ops.ledger, mixer.channels
    wide = FLOAT32_BYTES * x.numbers // 3
    narrow, size = x.width != FLOAT32_BYTES, x.nbytes
    taps = 0 if weight.width == FLOAT32_BYTES else FLOAT32_BYTES * weight.numbers
    wanted = (x.needs, weight.needs, bias is not None and bias.needs)
    weight_size, bias_size = FLOAT32_BYTES * weight.numbers, FLOAT32_BYTES * channels

    def back(_: list[Gradient]) -> Sequence[Gradient]:
        held = ledger.alloc(taps)
        grad = ops.new(size) if wanted[0] else None
        between = ledger.alloc(wide)
        if wanted[0]:
            ledger.transient(wide)
        after = ledger.alloc(wide)
        weight_grad = ops.new(weight_size) if wanted[1] else None
        if wanted[1]:
            ledger.transient(wide, bias_size)
        bias_grad = ops.new(bias_size) if wanted[2] else None
        ledger.free(between)
        if wanted[0]:
            ledger.transient(wide)  # beside what it is made from, then beside a product
        ledger.free(after + held)
        return (grad, weight_grad, bias_grad)[:count]

    saved = (*inputs, *own.values())
    count = len(saved)
    between = ledger.alloc(wide + taps)
    ledger.transient(wide)
    ledger.free(between)
    made = ledger.alloc(wide if narrow else 0)
    out = ops.tape.made((*x.shape[:-1], channels), x.width, saved, back, saved=saved)
    ledger.free(made)
    return out
