"""Short convolutions, LFM2's mixer.

B rows, S positions, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgetune.mixer import MixerTensor, Recurrent
from edgetune.network.ops import A

if TYPE_CHECKING:
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolution(Recurrent):
    """LFM2's mixer: ``out(c * convolution(b * u))`` of b, c and u, which ``in`` makes of x.

    Each channel is convolved on its own, over itself and the ``taps - 1`` tokens before.
    """

    kind: ClassVar[str] = "short_convolution"
    linear_roles: ClassVar[frozenset[str]] = frozenset({"conv_in", "conv_out"})

    channels: int
    taps: int
    module: str
    """Of the convolution, inside the block."""
    bias: bool = False

    @property
    def carried(self) -> int:
        """Float32 numbers that a row in generation keeps from one token to the next."""
        return (self.taps - 1) * self.channels

    @property
    def reach(self) -> int:
        """Tokens before a token that are convolved with it."""
        return self.taps - 1

    @property
    def tensors(self) -> tuple[MixerTensor, ...]:
        """The convolution's weight, and its bias if it has one."""
        size = (self.channels, 1, self.taps)
        weight = MixerTensor(role="conv", name=f"{self.module}.weight", shape=size)
        if not self.bias:
            return (weight,)
        added = MixerTensor(role="conv_bias", name=f"{self.module}.bias", shape=size[:1])
        return weight, added

    def output(self, block: Block[A], x: A) -> A:
        """Return what a short convolution (LFM2) makes of x (B, S, D)."""
        return block.project("conv_out", block.mix([block.project("conv_in", x)]))
