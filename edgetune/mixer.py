"""Mixers: what lets the tokens of a row know of each other, one a block.

Attention looks back at all tokens before. The others carry a state from token to token, which
begins anew with each document: each kind of them is a file of :mod:`edgetune.network.mixers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import Any, ClassVar, Literal, TypeVar

T = TypeVar("T")

PIECE = 64
"""Tokens of which each reads all others at once, by every backend, in mixers that carry a state."""

SPAN = 4 * PIECE
"""Tokens whose pieces torch computes beside each other, where only states go from piece to piece."""

XieluRole = Literal["alpha_p", "alpha_n", "beta", "eps"]
"""Numbers of an activation (Apertus)."""


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
    """A tensor of a mixer that is neither a projection nor a norm.

    ``role`` is what the mixer calls it, ``name`` what the checkpoint does inside the block.
    """

    role: str
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


class Recurrent(ABC):
    """A mixer that carries a state from token to token: what the shape of a model says of it."""

    __slots__ = ()

    kind: ClassVar[str]
    """Its name, and that of its module in every package that does something with it."""
    linear_roles: ClassVar[frozenset[str]]
    """Of its projections."""
    norm_roles: ClassVar[frozenset[str]] = frozenset()
    """Of the norms inside it."""

    @property
    @abstractmethod
    def carried(self) -> int:
        """Float32 numbers that a row in generation keeps from one token to the next."""

    @property
    def reach(self) -> int | None:
        """Tokens before a tile that are computed with it, as they are convolved; None: no tile is."""
        return None

    @property
    def state_size(self) -> tuple[int, ...]:
        """Sizes of a row's state, heads by the keys that they share first; (0,): it has none."""
        return (0,)

    @property
    def state(self) -> int:
        """Float32 numbers of a row that a tile goes on from, beside the tokens that are convolved."""
        return prod(self.state_size)

    @property
    @abstractmethod
    def tensors(self) -> tuple[MixerTensor, ...]:
        """Its tensors that are neither projections nor norms."""

    def mixed(self, block: Any, x: Any) -> Any:
        """Return what it makes of x (B, S, D) as far as its state goes, where a tile goes on from it."""
        del block, x
        raise TypeError(f"no tile goes on from the state of {self.kind}")

    @abstractmethod
    def output(self, block: Any, x: Any) -> Any:
        """Return what it makes of x (B, S, D) in a block, its output projection behind it."""

    def own(self, frozen: Mapping[str, T], trained: Mapping[str, T]) -> dict[str, T]:
        """Return its tensors by their roles, in their order; what is trained stands in."""
        roles = [tensor.role for tensor in self.tensors]
        return {role: trained[role] if role in trained else frozen[role] for role in roles}

    def module_in(self, package: str) -> Any:
        """Return the module in which a package has what it does with this kind of mixer."""
        return import_module(f"{package}.{self.kind}")


Mixer = Attention | Recurrent
