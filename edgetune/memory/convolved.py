"""Bytes of convolutions over a few tokens, as the torch engine does them.

B rows, S positions, D channels, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.memory.attended import Attending
from edgetune.memory.sized import Gradient, Sized
from edgetune.storage import FLOAT32_BYTES


class Convolving(Attending):
    """The mixers that are made of a convolution: sums in float32, inputs alone are saved."""

    def gated_convolution(self, x: Sized, weight: Sized, bias: Sized | None) -> Sized:
        """Return ``c * convolution(b * u)`` (B, S, D) of x (B, S, 3 D) with weight (D, 1, K)."""
        ledger, channels = self.ledger, weight.shape[0]
        wide = FLOAT32_BYTES * x.numbers // 3
        narrow, size = x.width != FLOAT32_BYTES, x.nbytes
        taps = 0 if weight.width == FLOAT32_BYTES else FLOAT32_BYTES * weight.numbers
        wanted = (x.needs, weight.needs, bias is not None and bias.needs)
        own = (FLOAT32_BYTES * weight.numbers, FLOAT32_BYTES * channels)

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            held = ledger.alloc(taps)
            grad = self.new(size) if wanted[0] else None
            between = ledger.alloc(wide)
            if wanted[0]:
                ledger.transient(wide)
            after = ledger.alloc(wide)
            weight_grad = self.new(own[0]) if wanted[1] else None
            if wanted[1]:
                ledger.transient(wide, own[1])
            bias_grad = self.new(own[1]) if wanted[2] else None
            ledger.free(between)
            if wanted[0]:
                ledger.transient(wide)  # beside what it is made from, then beside a product
            ledger.free(after + held)
            return (grad, weight_grad, bias_grad)[:count]

        inputs = (x, weight) if bias is None else (x, weight, bias)
        count = len(inputs)
        between = ledger.alloc(wide + taps)
        ledger.transient(wide)
        ledger.free(between)
        made = ledger.alloc(wide if narrow else 0)
        out = self.tape.made(
            (*x.shape[:-1], channels), x.width, inputs, back, saved=inputs
        )  # fmt: skip
        ledger.free(made)
        return out
