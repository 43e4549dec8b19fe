"""How a method's tensors join the forward pass: the places where it may step in.

B rows, S positions, D hidden size, H heads, G key/value heads, K keys, h channels of a head.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import mlx.core as mx

from edgetune.methods.base import Method
from edgetune.shape import Attention, Linear, ModelShape, NormKind
from edgetune_mlx.attention import Keys, causal
from edgetune_mlx.linear import frozen_linear
from edgetune_mlx.matrices import Matrix
from edgetune_mlx.pointwise import norm

Sublayer = Literal["attention", "mlp"]
Self = TypeVar("Self", bound="Adapted")
Arrays = Mapping[str, mx.array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """The attention of one layer, about to be computed.

    ``q`` (B, H, S, h), ``k`` and ``v`` (B, G, K, h) are rotated and normalised; ``keys`` says
    which keys a query sees. ``keys_values`` projects further hidden states (1, S, D) to keys
    and values (1, G, S, h), without positions.
    """

    layer: int
    q: mx.array
    k: mx.array
    v: mx.array
    rule: Attention
    keys: Keys
    keys_values: Callable[[mx.array], tuple[mx.array, mx.array]]

    def of_rows(self, rows: slice) -> Attended:
        """Return the attention of some rows."""
        q, k, v = (x[rows] for x in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v, keys=self.keys.of_rows(rows))

    def out(self) -> mx.array:
        """Return the attention's own output (B, H, S, h)."""
        return causal(self.q, self.k, self.v, self.rule, self.keys)


class Adaptation:
    """No method at all: the frozen model. Methods override the places they act on."""

    trains_input: bool = False
    """Whether gradients go on to :meth:`embed`."""
    virtual_tokens: int = 0
    """Placeholders before every document, which :meth:`embed` fills."""
    positions: int = 0
    """Positions before the first token of every document."""

    def of_rows(self, count: int) -> Sequence[Adaptation]:
        """Return the adaptation of each row of a batch of ``count``."""
        return [self] * count

    def embed(self, x: mx.array, positions: mx.array) -> mx.array:
        """Return the embeddings (B, S, D) of tokens at positions (B, S) of their documents."""
        return x

    def norm(
        self,
        layer: int | None,
        role: str,
        x: mx.array,
        kind: NormKind,
        weight: mx.array,
        bias: mx.array | None,
    ) -> mx.array:
        """Return x normalised by a block's norm, by the final one if ``layer`` is None."""
        return norm(x, kind, weight, bias)

    def project(
        self, layer: int, linear: Linear, x: mx.array, matrix: Matrix, bias: mx.array | None
    ) -> mx.array:
        """Return a block's projection of x (..., inputs) to (..., outputs)."""
        return frozen_linear(x, matrix, bias)

    def attend(self, attended: Attended) -> mx.array:
        """Return the output (B, H, S, h) of a layer's attention."""
        return attended.out()

    def sublayer(self, layer: int, which: Sublayer, x: mx.array, out: mx.array) -> mx.array:
        """Return what one half of a block adds to the stream (B, S, D).

        ``x`` is the half's normalised input and ``out`` what it computed from it.
        """
        return out


class Adapted(Adaptation):
    """A method at work on a model; what it computes is a function of :attr:`parameters`."""

    def __init__(self, spec: Method, shape: ModelShape, parameters: Arrays) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        self.spec = spec
        self.shape = shape
        self.parameters = dict(parameters)
        self.trains_input = spec.trains_input
        self.virtual_tokens = spec.virtual_tokens
        self.positions = spec.positions
        self.first_layer = spec.first_layer(shape)
        """The first adapted block: gradients stop there, unless ``trains_input``."""
        declared = [tensor for tensor in spec.tensors(shape) if tensor.trained]
        self.trained = {tensor.name: tensor.size for tensor in declared}
        self.rates = {tensor.name: tensor.rate for tensor in declared}
        self._step: str | None = None

    def over(self: Self, parameters: Arrays) -> Self:
        """Return the same method with some tensors replaced, those that are differentiated."""
        other = copy.copy(self)
        other.parameters = {**self.parameters, **parameters}
        return other

    def drawing(self: Self, step: str, part: int) -> Self:
        """Return the same method for a micro-batch in training, which may draw random numbers.

        ``step`` is the same for all micro-batches of a step, ``part`` their number.
        """
        other = copy.copy(self)
        other._step = f"{step}:{part}"
        return other

    def without_tensors(self: Self) -> Self:
        """Return the same method with nothing but its constants, to be kept for long."""
        other = copy.copy(self)
        other.parameters = {k: v for k, v in self.parameters.items() if k not in self.trained}
        return other

    @property
    def draws(self) -> bool:
        """Whether random numbers of the step are part of what a block computes."""
        return False

    def of_block(self, layer: int) -> dict[str, mx.array]:
        """Return the trained tensors that a block computes with."""
        prefix = self.shape.block(layer)
        return self._chosen(lambda name: name.startswith(prefix) or self.everywhere(name))

    def of_head(self) -> dict[str, mx.array]:
        """Return the trained tensors of the final norm."""
        prefix = f"{self.shape.final_norm.module}."
        return self._chosen(lambda name: name.startswith(prefix))

    def of_input(self) -> dict[str, mx.array]:
        """Return the trained tensors that :meth:`embed` computes with."""
        return self._chosen(lambda _: True) if self.trains_input else {}

    def everywhere(self, name: str) -> bool:
        """Tell whether a tensor takes part in every block."""
        return False

    def key(self, layer: int, role: str) -> mx.array | None:
        """Return the random key of a projection in this micro-batch; None: draw nothing."""
        return None if self._step is None else key_of(f"{self._step}:{layer}:{role}")

    def _chosen(self, wanted: Callable[[str], bool]) -> dict[str, mx.array]:
        return {name: self.parameters[name] for name in self.trained if wanted(name)}


def key_of(name: str) -> mx.array:
    """Return the random key that belongs to a name: there is no running generator."""
    digest = hashlib.sha256(name.encode()).digest()
    key: mx.array = mx.random.key(int.from_bytes(digest[:8], "big"))
    return key


def norm_modules(shape: ModelShape) -> Iterator[tuple[tuple[int | None, str], str]]:
    """Yield layer and role of every norm, with its module."""
    yield (None, "final"), shape.final_norm.module
    for layer in range(shape.layers):
        for item in shape.norms:
            yield (layer, item.role), f"{shape.block(layer)}{item.module}"


BASE = Adaptation()
