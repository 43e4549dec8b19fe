"""Mamba-2, the mixer of Granite 4 H, Falcon-H1 and Nemotron-H.

B rows, S positions, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar

from edgetune.mixer import PIECE, MixerTensor, Recurrent
from edgetune.network.ops import A

if TYPE_CHECKING:
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpace(Recurrent):
    """Mamba-2's mixer: heads whose state is a matrix that decays and to which each token adds.

    ``in`` makes a gate, what is convolved (values, keys, queries; x, B, C in the paper) and a step
    for each head. Each group of keys and queries serves some heads, one after another.
    """

    kind: ClassVar[str] = "state_space"
    linear_roles: ClassVar[frozenset[str]] = frozenset({"scan_in", "scan_out"})
    norm_roles: ClassVar[frozenset[str]] = frozenset({"scan"})

    heads: int
    groups: int
    value_dim: int
    """Channels of a head's values."""
    key_dim: int
    """Channels of a group's keys, the state size."""
    taps: int
    module: str
    """Of the mixer, inside the block."""
    bias: bool = True
    """Whether the convolution has one."""
    least_step: float = 0.0
    most_step: float = inf
    multipliers: tuple[float, ...] = ()
    """Of what ``in`` makes: gate, values, keys, queries and steps; empty: none (Falcon-H1)."""
    normed_first: bool = False
    """What is read is normalised before the gate multiplies it, not behind."""

    @property
    def keys(self) -> int:
        """Numbers of all keys of a token; those of all queries are as many."""
        return self.groups * self.key_dim

    @property
    def values(self) -> int:
        """Numbers of all values of a token."""
        return self.heads * self.value_dim

    @property
    def channels(self) -> int:
        """Channels that are convolved."""
        return 2 * self.keys + self.values

    @property
    def channel_multipliers(self) -> tuple[tuple[float, int], ...]:
        """What is convolved, in its order: multipliers, and of how many channels they are."""
        values, keys, queries = self.multipliers[1:4] or (1.0, 1.0, 1.0)
        return (values, self.values), (keys, self.keys), (queries, self.keys)

    @property
    def parts(self) -> tuple[int, int, int]:
        """Numbers of a token's gate, of what is convolved, and of its steps."""
        return self.values, self.channels, self.heads

    @property
    def carried(self) -> int:
        """Float32 numbers that a row in generation keeps from one token to the next."""
        return self.reach * self.channels + self.state

    @property
    def reach(self) -> int:
        """Tokens before a token that are convolved with it."""
        return self.taps - 1

    @property
    def state_size(self) -> tuple[int, ...]:
        """Sizes of a row's state."""
        return (self.groups, self.heads // self.groups, self.key_dim, self.value_dim)

    @property
    def products(self) -> int:
        """Products of numbers that a token takes: with the state twice, and within a piece."""
        own = 2 * self.key_dim * self.value_dim
        return self.heads * (own + PIECE * self.value_dim) + PIECE * self.keys

    @property
    def tensors(self) -> tuple[MixerTensor, ...]:
        """Those of the convolution; by head how fast a state decays, a bias of steps, a skip."""
        size, heads = (self.channels, 1, self.taps), (self.heads,)
        name = f"{self.module}.conv1d"
        weight = MixerTensor(role="conv", name=f"{name}.weight", shape=size)
        bias = MixerTensor(role="conv_bias", name=f"{name}.bias", shape=size[:1])
        return (
            *((weight, bias) if self.bias else (weight,)),
            MixerTensor(role="a_log", name=f"{self.module}.A_log", shape=heads),
            MixerTensor(role="dt_bias", name=f"{self.module}.dt_bias", shape=heads),
            MixerTensor(role="skip", name=f"{self.module}.D", shape=heads),
        )

    def mixed(self, block: Block[A], x: A) -> A:
        """Return what it reads of x (B, S, D), before that is normalised and gated."""
        _, read, steps = block.ops.split(block.project("scan_in", x), self.parts)
        return block.mix([read, steps])

    def output(self, block: Block[A], x: A) -> A:
        """Return what Mamba-2 (Granite 4 H) makes of x (B, S, D)."""
        ops = block.ops
        gate, read, steps = ops.split(block.project("scan_in", x), self.parts)
        out = block.mix([read, steps])
        del read, steps
        if self.multipliers:
            gate = ops.scaled(gate, self.multipliers[0])
        if self.normed_first:
            out = block.norm("scan", out)
        out = ops.gated(gate, out, "silu")
        del gate
        return block.project("scan_out", out if self.normed_first else block.norm("scan", out))
