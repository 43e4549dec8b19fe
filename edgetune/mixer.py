"""Mixers: what lets the tokens of a row know of each other, one a block.

Attention looks back at all tokens before. The others carry a state from token to token, which
begins anew with each document.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

PIECE = 64
"""Tokens of which each reads all others at once, by every backend, in mixers that carry a state."""

SPAN = 4 * PIECE
"""Tokens whose pieces torch computes beside each other, where only states go from piece to piece."""

MixerLinearRole = Literal[
    "conv_in", "conv_out",
    "delta_qkv", "delta_z", "delta_b", "delta_a", "delta_out",
    "scan_in", "scan_out",
]  # fmt: skip
"""Projections of mixers that are not attention."""
MixerNormRole = Literal["delta", "scan"]
"""Norms inside mixers that are not attention."""
XieluRole = Literal["alpha_p", "alpha_n", "beta", "eps"]
"""Numbers of an activation (Apertus)."""
MixerRole = Literal["conv", "conv_bias", "a_log", "dt_bias", "skip", "sinks", "scalar"] | XieluRole
"""Tensors that are neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """Rotary position embedding with its base frequency and its scaling rule."""

    theta: float
    dimensions: int
    """Leading channels of a head that rotate; the rest pass unchanged."""
    scaling: Literal["none", "linear", "llama3", "longrope", "yarn", "proportional"] = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    """Multiplies cosine and sine (longrope, yarn)."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    interleaved: bool = False
    """Channels 2i and 2i + 1 rotate together (GPT-J), not i and i + half of those that rotate."""
    growth: float = 0.0
    """What rotates is multiplied by ``1 + growth * log(1 + position // original_context)``."""
    turning: int = 0
    """Of ``dimensions`` the ones that turn at all, where the slow ones are left out (Gemma 4)."""
    trailing: bool = False
    """The last channels of a head rotate, not the leading ones (DeepSeek)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """What keys and values are made of in multi-head latent attention (DeepSeek-V2, section 2.1).

    ``kv_a`` makes a latent of each token and the part of its keys that rotates, which all heads
    share; of the latent, normalised, ``kv_b`` makes by head the other part of keys, and values.
    Queries can be made in two steps in the same way, through ``q_a`` and ``q_b``.
    """

    rank: int
    """Numbers of a latent."""
    rotated: int
    """Channels of a key that all heads share: its last ones."""
    value_dim: int
    """Channels of a value: at most those of a key. Attention is computed with zeros behind them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What the attention of one layer does besides its projections."""

    scale: float
    window: int | None = None
    """A token sees itself and the ``window - 1`` tokens before it; ``None`` sees all."""
    slopes: tuple[float, ...] = ()
    """By head, what is taken from a score for each position between query and key (ALiBi)."""
    softcap: float | None = None
    """``softcap * tanh(scores / softcap)`` before the softmax (Gemma-2)."""
    gated: bool = False
    """Each head's queries come with a gate: its output times the gate's sigmoid (Qwen3.5)."""
    rotary: Rotary | None = None
    query_rotary: Rotary | None = None
    """The rotation of queries, where it is another one than that of keys (Ministral 3)."""
    sinks: str | None = None
    """Name of a tensor inside the block: by head the score of a key that all queries see, and whose
    value is zero (gpt-oss)."""
    source: int | None = None
    """The layer whose keys and values it reads, if it makes none of its own (Gemma 4)."""
    lends: bool = False
    """Whether later layers read the keys and values that it makes."""
    latent: Latent | None = None
    """How keys and values are made, if not by a projection of their own each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerTensor:
    """A tensor of a mixer that is neither a projection nor a norm; ``name`` is inside the block."""

    role: MixerRole
    name: str
    shape: tuple[int, ...]


def xielu_tensors(module: str) -> tuple[MixerTensor, ...]:
    """Return the numbers of an xIELU: two that were learned, then two that were chosen."""
    sizes: dict[XieluRole, tuple[int, ...]] = {
        "alpha_p": (1,),
        "alpha_n": (1,),
        "beta": (),
        "eps": (),
    }
    return tuple(
        MixerTensor(role=role, name=f"{module}.{role}", shape=size) for role, size in sizes.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolution:
    """LFM2's mixer: ``out(c * convolution(b * u))`` of b, c and u, which ``in`` makes of x.

    Each channel is convolved on its own, over itself and the ``taps - 1`` tokens before.
    """

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
    def products(self) -> int:
        """Products of numbers that a token takes beside what moves them."""
        return 0

    @property
    def tensors(self) -> tuple[MixerTensor, ...]:
        """The convolution's weight, and its bias if it has one."""
        size = (self.channels, 1, self.taps)
        weight = MixerTensor(role="conv", name=f"{self.module}.weight", shape=size)
        if not self.bias:
            return (weight,)
        added = MixerTensor(role="conv_bias", name=f"{self.module}.bias", shape=size[:1])
        return weight, added


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDelta:
    """Gated DeltaNet's mixer: heads whose state is a matrix that the delta rule corrects.

    Queries, keys and values of all heads are convolved together; each head of keys serves some
    heads of values, one after another. Sizes are those of a head.
    """

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
        states = self.value_heads * self.key_dim * self.value_dim
        return (self.taps - 1) * self.channels + states

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


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpace:
    """Mamba-2's mixer: heads whose state is a matrix that decays and to which each token adds.

    ``in`` makes a gate, what is convolved (values, keys, queries; x, B, C in the paper) and a step
    for each head. Each group of keys and queries serves some heads, one after another.
    """

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
        states = self.heads * self.key_dim * self.value_dim
        return (self.taps - 1) * self.channels + states

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


Recurrent = ShortConvolution | GatedDelta | StateSpace
"""Mixers that carry a state from token to token."""

Mixer = Attention | Recurrent
