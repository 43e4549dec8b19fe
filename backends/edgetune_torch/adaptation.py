"""How a method's tensors join the forward pass: the places where it may step in.

B rows, S positions, D hidden size, H heads, G key/value heads, K keys, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.base import Method
from edgetune.shape import Attention, Linear, ModelShape, NormKind
from edgetune_torch.attention import Documents, attend, causal
from edgetune_torch.linear import frozen_linear
from edgetune_torch.matrices import Matrix
from edgetune_torch.pointwise import norm

Sublayer = Literal["attention", "mlp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """The attention of one layer, about to be computed.

    ``q`` (B, H, S, h), ``k`` and ``v`` (B, G, K, h) are rotated and normalised. If ``cached``,
    there is one query, of the last key's token. ``keys_values`` projects further hidden states
    (1, S, D) to keys and values (1, G, S, h), without positions.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    rule: Attention
    documents: Documents
    cached: bool
    keys_values: Callable[[Tensor], tuple[Tensor, Tensor]]

    def of_rows(self, rows: slice) -> Attended:
        """Return the attention of some rows."""
        q, k, v = (x[rows] for x in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v, documents=self.documents[rows])

    def out(self) -> Tensor:
        """Return the attention's own output (B, H, S, h)."""
        if self.cached:
            return causal(self.q, self.k, self.v, self.rule)
        return attend(self.q, self.k, self.v, self.rule, self.documents)


class Adaptation:
    """No method at all: the frozen model. Methods override the places they act on."""

    trains_input: bool = False
    """Whether gradients go on to :meth:`embed`."""
    virtual_tokens: int = 0
    """Placeholders before every document, which :meth:`embed` fills."""
    positions: int = 0
    """Positions before the first token of every document."""

    def first_layer(self) -> int:
        """Return the first adapted block: gradients stop there, unless ``trains_input``."""
        return 0

    def of_rows(self, count: int) -> Sequence[Adaptation]:
        """Return the adaptation of each row of a batch of ``count``."""
        return [self] * count

    def seed(self, step: str | None, part: int = 0) -> None:
        """Draw everything random from ``step`` and ``part`` until the next call; None: evaluation.

        ``step`` is the same for all micro-batches of a step, ``part`` their number.
        """

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return the embeddings (B, S, D) of tokens at positions (B, S) of their documents."""
        return x

    def norm(
        self,
        layer: int | None,
        role: str,
        x: Tensor,
        kind: NormKind,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Return x normalised by a block's norm, by the final one if ``layer`` is None."""
        return norm(x, kind, weight, bias)

    def project(
        self, layer: int, linear: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None
    ) -> Tensor:
        """Return a block's projection of x (..., inputs) to (..., outputs)."""
        return frozen_linear(x, matrix, bias)

    def attend(self, attended: Attended) -> Tensor:
        """Return the output (B, H, S, h) of a layer's attention."""
        return attended.out()

    def sublayer(self, layer: int, which: Sublayer, x: Tensor, out: Tensor) -> Tensor:
        """Return what one half of a block adds to the stream (B, S, D).

        ``x`` is the half's normalised input and ``out`` what it computed from it.
        """
        return out


class Adapted(Adaptation):
    """A method at work on a model."""

    def __init__(
        self, spec: Method, shape: ModelShape, parameters: Mapping[str, Parameter]
    ) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        self.spec = spec
        self.shape = shape
        self.parameters = dict(parameters)
        self.trains_input = spec.trains_input
        self.virtual_tokens = spec.virtual_tokens
        self.positions = spec.positions
        self._first = spec.first_layer(shape)

    def first_layer(self) -> int:
        """Return the first adapted block."""
        return self._first

    @property
    def trained(self) -> dict[str, Parameter]:
        """The tensors without the method's constants."""
        return {name: value for name, value in self.parameters.items() if value.requires_grad}

    @property
    def rates(self) -> dict[str, float]:
        """What the learning rate of each tensor is multiplied by."""
        return {tensor.name: tensor.rate for tensor in self.spec.tensors(self.shape)}


BASE = Adaptation()
