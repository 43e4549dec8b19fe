"""Gated DeltaNet, Qwen3.5's mixer.

B rows, S positions, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgetune.mixer import PIECE, MixerTensor, Recurrent
from edgetune.network.ops import A

if TYPE_CHECKING:
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDelta(Recurrent):
    """Gated DeltaNet's mixer: heads whose state is a matrix that the delta rule corrects.

    Queries, keys and values of all heads are convolved together; each head of keys serves some
    heads of values, one after another. Sizes are those of a head.
    """

    kind: ClassVar[str] = "gated_delta"
    linear_roles: ClassVar[frozenset[str]] = frozenset(
        {"delta_qkv", "delta_z", "delta_b", "delta_a", "delta_out"}
    )
    norm_roles: ClassVar[frozenset[str]] = frozenset({"delta"})

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    module: str
    """Of the mixer, inside the block."""

    @property
    def keys(self) -> int:
        """Numbers of all keys of a token; those of all queries are as many."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Numbers of all values of a token."""
        return self.value_heads * self.value_dim

    @property
    def shared(self) -> int:
        """Heads of values that a head of keys serves."""
        return self.value_heads // self.key_heads

    @property
    def channels(self) -> int:
        """Channels that are convolved."""
        return 2 * self.keys + self.values

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
        return (self.key_heads, self.shared, self.key_dim, self.value_dim)

    @property
    def products(self) -> int:
        """Products of numbers that a token takes: with the state three times, and within a piece."""
        own = 3 * self.key_dim * self.value_dim
        return self.value_heads * (own + 2 * PIECE * (self.key_dim + self.value_dim))

    @property
    def tensors(self) -> tuple[MixerTensor, ...]:
        """The convolution's weight, and by head how fast the state decays and a bias of that."""
        size, heads = (self.channels, 1, self.taps), (self.value_heads,)
        return (
            MixerTensor(role="conv", name=f"{self.module}.conv1d.weight", shape=size),
            MixerTensor(role="a_log", name=f"{self.module}.A_log", shape=heads),
            MixerTensor(role="dt_bias", name=f"{self.module}.dt_bias", shape=heads),
        )

    def mixed(self, block: Block[A], x: A) -> A:
        """Return what it reads of x (B, S, D), before that is normalised and gated."""
        return block.mix([block.project(role, x) for role in ("delta_qkv", "delta_b", "delta_a")])

    def output(self, block: Block[A], x: A) -> A:
        """Return what Gated DeltaNet (Qwen3.5) makes of x (B, S, D)."""
        ops = block.ops
        out = ops.to_heads(self.mixed(block, x), self.value_dim)
        out = block.norm("delta", out)
        gate = ops.to_heads(block.project("delta_z", x), self.value_dim)
        out = ops.gated(gate, out, "silu")
        return block.project("delta_out", ops.from_heads(ops.heads_first(out)))
