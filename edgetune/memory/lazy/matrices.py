"""Frozen matrices in MLX's formats, products with them, and the order that these keep to.

K inputs, N outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Protocol

from edgetune.memory.lazy.arrays import counted, gathered, made_of, matmul
from edgetune.memory.lazy.elementwise import add, cast, converted, multiply, times
from edgetune.memory.lazy.graph import Array, Operation, given
from edgetune.memory.lazy.views import depends, expand, reshape, swapaxes
from edgetune.storage import AFFINE, FLOAT32_BYTES


class Format(Protocol):
    """How a matrix becomes numbers."""

    @property
    def makes_numbers(self) -> bool:
        """Whether a product makes a matrix to multiply with."""

    def dense(self, parts: Sequence[Array], shape: tuple[int, int], width: int) -> Array:
        """Return the numbers (N, K) of parts."""


@dataclass(frozen=True, slots=True)
class Plain:
    """What is multiplied as it lies, the numbers of the file or a kernel's codes, or converted."""

    makes_numbers: bool

    def dense(self, parts: Sequence[Array], shape: tuple[int, int], width: int) -> Array:
        """Return them, converted if need be; a kernel's codes as numbers of that width."""
        if self.makes_numbers:
            return converted(parts[0], width)
        if len(parts) == 1:
            return cast(parts[0], width)
        return made_of(parts, shape, width)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """MLX's formats on a processor: bytes are converted or looked up, then scaled."""

    quantization: str
    stored: int
    makes_numbers: bool = True

    def dense(self, parts: Sequence[Array], shape: tuple[int, int], width: int) -> Array:
        """Return the numbers in the type of affine scales, or in the one asked for."""
        codes, scales, *biases = parts
        kind = self.stored if self.quantization in AFFINE else width
        grouped = (*scales.shape, shape[1] // scales.shape[1])
        if self.quantization == "q8":
            values = converted(reshape(codes, shape), kind)
        else:
            values = gathered(given((256, 2), kind), codes, (*codes.shape, 2))
        factors = scales
        if not biases:
            factors = times(converted(scales, kind))
        numbers = multiply(reshape(values, grouped), expand(factors, 2))
        if biases:
            numbers = add(numbers, expand(biases[0], 2))
        return cast(reshape(numbers, shape), width)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Blocks of a GGUF file: codes take some bytes a number, and become float32 before others."""

    codes: float
    moved: bool = False
    """Whether columns go to other places then."""
    makes_numbers: bool = True

    def dense(self, parts: Sequence[Array], shape: tuple[int, int], width: int) -> Array:
        """Return the numbers, computed in float32 and rounded once."""
        size = shape[0] * shape[1]
        operation = Operation(
            tuple(parts), nbytes=size * FLOAT32_BYTES, spare=ceil(self.codes * size), tasks=12
        )
        numbers = cast(Array(shape, FLOAT32_BYTES, operation), width)
        if not self.moved:
            return numbers
        return Array(shape, width, Operation((numbers,), nbytes=size * width))


@dataclass(slots=True)
class Sequencer:
    """Keeps products that make a matrix to multiply with in turn, as the engine does."""

    forward: list[Array] = field(default_factory=list)
    back: Array | None = None

    def before_next(self) -> list[Array]:
        """Return what the next product on the way forward waits for."""
        return self.forward[-1:]

    def done(self, y: Array) -> Array:
        """Return the result of a product on the way forward, once it is noted."""
        y, mark = depends([y, counted((1,))], [y])
        self.forward = [*self.forward[-1:], mark]
        return y

    def before_next_back(self) -> list[Array]:
        """Return what the next product on the way back waits for."""
        return self.forward[-2:-1] if self.back is None else [self.back]

    def done_back(self, grad: Array) -> Array:
        """Return the result of a product on the way back, once it is noted."""
        grad, self.back = depends([grad, counted((1,))], [grad])
        return grad


@dataclass(frozen=True, slots=True)
class Matrix:
    """A frozen matrix (N, K), or several one below the other."""

    form: Format
    parts: tuple[Array, ...]
    shape: tuple[int, int]
    sequencer: Sequencer

    def dense(self, width: int) -> Array:
        """Return the matrix as plain numbers."""
        return self.form.dense(self.parts, self.shape, width)

    def times(self, x: Array) -> Array:
        """Return ``x W^T``."""
        if not self.form.makes_numbers:
            return matmul(x, swapaxes(self.multiplied(x.width), 0, 1))
        own = self._behind([x, *self.sequencer.before_next()])
        return self.sequencer.done(matmul(x, swapaxes(own.dense(x.width), 0, 1)))

    def back(self, grad: Array) -> Array:
        """Return ``grad W``."""
        if not self.form.makes_numbers:
            return matmul(grad, self.multiplied(grad.width))
        own = self._behind([grad, *self.sequencer.before_next_back()])
        return self.sequencer.done_back(matmul(grad, own.dense(grad.width)))

    def multiplied(self, width: int) -> Array:
        """Return what a product multiplies with: a kernel takes codes as they lie."""
        if self.form.makes_numbers or len(self.parts) == 1:
            return self.dense(width)
        return Array(self.shape, width, Operation(self.parts, views=(0,)))

    def _behind(self, others: list[Array]) -> Matrix:
        """Return the matrix, to be read when other arrays are there."""
        return replace(self, parts=tuple(depends(self.parts, others)))
