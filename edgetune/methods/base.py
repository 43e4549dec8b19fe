"""What a method is: the tensors that it adds to a frozen model, as data.

A backend says how these tensors join the forward pass; their names, shapes, first values and
number are said here, once, for all backends.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod, sqrt
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edgetune.shape import ModelShape

Initial = Literal["zeros", "ones", "kaiming-uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTensor:
    """A trained float32 tensor: where it sits, which part of the method it is, its shape."""

    module: str
    part: str
    shape: tuple[int, ...]
    initial: Initial

    @property
    def name(self) -> str:
        """Name in the adapter file, without PEFT's ``base_model.model.`` prefix."""
        return f"{self.module}.{self.part}.weight"

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class Method(ABC):
    """One way to adapt a model. Every subclass is a frozen dataclass of its settings."""

    kind: ClassVar[str]
    mergeable: ClassVar[bool]
    """Whether the trained tensors can be folded into the base weights."""

    @abstractmethod
    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return every trained tensor, in a fixed order.

        Raises:
            UsageError: if the settings name parts that the model does not have.
        """

    def parameters(self, shape: ModelShape) -> int:
        """Return the number of trained parameters."""
        return sum(tensor.size for tensor in self.tensors(shape))


def initial_value(tensor: AdapterTensor, seed: int) -> NDArray[np.float32]:
    """Return a tensor's value before training, a function of its name and the seed alone.

    Drawing by name makes every backend start from the same bits, whatever its order.
    ``kaiming-uniform`` is U(-1/sqrt(k), 1/sqrt(k)) with k the size of the last axis: Kaiming
    initialisation with a = sqrt(5), as PEFT uses for LoRA's A.
    """
    match tensor.initial:
        case "zeros":
            return np.zeros(tensor.shape, np.float32)
        case "ones":
            return np.ones(tensor.shape, np.float32)
        case "kaiming-uniform":
            bound = 1 / sqrt(tensor.shape[-1])
            generator = _generator(tensor.name, seed)
            return generator.uniform(-bound, bound, tensor.shape).astype(np.float32)


def _generator(name: str, seed: int) -> np.random.Generator:
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
