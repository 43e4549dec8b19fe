"""A method at work on a model: its tensors, and what is drawn at random in a pass."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from edgetune.methods.base import Method
from edgetune.network.adaptation import Adaptation, Sublayer
from edgetune.network.block import Block
from edgetune.network.ops import A, Attended, Dropout, KeptNorms
from edgetune.shape import Experts, Linear, ModelShape

Self = TypeVar("Self", bound="Adapted")  # type: ignore[type-arg]


class Adapted(Adaptation[A]):
    """Lets a method's spec step in; what it computes is a function of :attr:`tensors`."""

    def __init__(self, spec: Method, shape: ModelShape, tensors: Mapping[str, A]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        self.spec = spec
        self.shape = shape
        self.tensors: Mapping[str, A] = dict(tensors)
        self.trains_input = spec.trains_input
        self.virtual_tokens = spec.virtual_tokens
        self.positions = spec.positions
        self.adapts_experts = spec.adapts_experts(shape)
        self.first_layer = spec.first_layer(shape)
        self.reads_summands = spec.reads_summands
        trained = [tensor for tensor in spec.tensors(shape) if tensor.trained]
        self.sizes = {tensor.name: tensor.size for tensor in trained}
        """Elements of each trained tensor."""
        self.rates = {tensor.name: tensor.rate for tensor in trained}
        """What the learning rate of each trained tensor is multiplied by."""
        self.kept: KeptNorms[A] = KeptNorms()
        self.step: str | None = None
        """The step of a training pass, the same for all of its micro-batches; None: no training."""
        self._part = 0

    # other states of the same method

    def drawing(self: Self, step: str | None, part: int = 0) -> Self:
        """Return the same method for one pass, in which everything random is a function of these.

        ``step`` is that of training, ``part`` the number of its first row; without a step
        nothing is drawn.
        """
        other = copy.copy(self)
        other.step, other._part, other.kept = step, part, self.kept.anew()
        return other

    def from_row(self: Self, part: int) -> Self:
        """Return the same method for another micro-batch of the step: norms that are known stay."""
        other = copy.copy(self)
        other._part = part
        return other

    def over(self: Self, tensors: Mapping[str, A]) -> Self:
        """Return the same method with some tensors replaced."""
        other = copy.copy(self)
        other.tensors = {**self.tensors, **tensors}
        other.kept = self.kept.anew()
        return other

    def without_trained(self: Self) -> Self:
        """Return the same method with nothing but its constants, to be kept for long."""
        other = copy.copy(self)
        other.tensors = {k: v for k, v in self.tensors.items() if k not in self.sizes}
        return other

    @property
    def trained(self) -> dict[str, A]:
        """The tensors without the method's constants."""
        return {name: self.tensors[name] for name in self.sizes}

    @property
    def head(self) -> A | None:
        """The trained output projection (V, D), if it is not frozen."""
        name = self.spec.trained_head(self.shape)
        return None if name is None else self.tensors[name]

    # which tensors belong where

    def of_block(self, layer: int) -> dict[str, A]:
        """Return the trained tensors that a block computes with."""
        prefix = self.shape.block(layer)
        return self._chosen(lambda name: name.startswith(prefix) or self.spec.everywhere(name))

    def of_head(self) -> dict[str, A]:
        """Return the trained tensors of the final norm."""
        prefix = f"{self.shape.final_norm.module}."
        return self._chosen(lambda name: name.startswith(prefix))

    def of_input(self) -> dict[str, A]:
        """Return the trained tensors that the input of the first block is computed with."""
        return self._chosen(lambda name: self.spec.at_input(self.shape, name))

    def _chosen(self, wanted: Callable[[str], bool]) -> dict[str, A]:
        return {name: self.tensors[name] for name in self.sizes if wanted(name)}

    # what is random

    @property
    def draws(self) -> bool:
        """Whether random numbers are part of what this pass computes."""
        return self.step is not None and self.spec.draws

    @property
    def training(self) -> bool:
        """Whether this is a pass of training."""
        return self.step is not None

    def dropout(self, fraction: float, layer: int | None, role: str) -> Dropout | None:
        """Return what is dropped of a projection's input in this micro-batch."""
        if self.step is None or fraction == 0:
            return None
        name = f"{self.step}:{self._part}:{layer}:{role}".encode()
        return Dropout(fraction, int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))

    # the places

    def look_up(self, block: Block[A], tokens: A) -> A:
        """Return the rows of an embedding table for tokens."""
        return self.spec.look_up(block, self, tokens)

    def embed(self, block: Block[A], x: A) -> A:
        """Return the embeddings (B, S, D) of the tokens."""
        return self.spec.embed(block, self, x)

    def norm(self, block: Block[A], role: str, x: A) -> A:
        """Return x normalised."""
        return self.spec.norm(block, self, role, x)

    def project(self, block: Block[A], linear: Linear, x: A) -> A:
        """Return a projection of x."""
        return self.spec.project(block, self, linear, x)

    def attend(self, block: Block[A], attended: Attended[A]) -> A:
        """Return the output (B, H, S, h) of the block's attention."""
        return self.spec.attend(block, self, attended)

    def mix(self, block: Block[A], inputs: Sequence[A]) -> A:
        """Return what a mixer without attention makes of what its projections made."""
        return self.spec.mix(block, self, inputs)

    def experts(self, block: Block[A], rule: Experts, x: A) -> A:
        """Return what the chosen experts make of x."""
        return self.spec.experts(block, self, rule, x)

    def sublayer(self, block: Block[A], which: Sublayer, x: A, out: A) -> A:
        """Return what one half of the block adds to the stream."""
        return self.spec.sublayer(block, self, which, x, out)
