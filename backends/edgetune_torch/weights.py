"""The frozen blocks of a model, wherever their matrices live.

Whoever computes with blocks walks through them: inside the walk's loop the matrices of the
current block are present. What is no matrix is small and always resident.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from edgetune_torch.matrices import Matrix


@dataclass(slots=True)
class BlockWeights:
    """The frozen tensors of one block, by role; those of experts by their key."""

    matrices: Mapping[str, Matrix] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    norm_biases: dict[str, Tensor] = field(default_factory=dict)
    mixer: dict[str, Tensor] = field(default_factory=dict)
    routing: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the small tensors."""
        small = (self.biases, self.norms, self.norm_biases, self.mixer, self.routing)
        return sum(tensor.nbytes for group in small for tensor in group.values())


class Blocks(ABC):
    """All blocks of a model."""

    def __init__(self, blocks: Sequence[BlockWeights]) -> None:
        """Take the blocks in their order."""
        self._blocks = list(blocks)

    def __getitem__(self, layer: int) -> BlockWeights:
        """Return one block; its matrices can be used during its turn in a walk."""
        return self._blocks[layer]

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._blocks)

    @abstractmethod
    def walk(self, layers: Sequence[int]) -> Iterator[int]:
        """Yield the layers in the given order, each with its matrices present."""

    @property
    @abstractmethod
    def matrix_bytes(self) -> int:
        """Bytes that the matrices take on the device."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything on the device."""
        return self.matrix_bytes + sum(block.nbytes for block in self._blocks)

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


class ResidentBlocks(Blocks):
    """Blocks that are all present all the time, each in one buffer."""

    def __init__(self, blocks: Sequence[BlockWeights], buffers: Sequence[Tensor]) -> None:
        """Take the blocks, whose matrices lie in ``buffers``."""
        super().__init__(blocks)
        self._buffers = list(buffers)

    def walk(self, layers: Sequence[int]) -> Iterator[int]:
        """Yield the layers."""
        yield from layers

    @property
    def matrix_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def close(self) -> None:
        """Let go of the buffers."""
        self._blocks.clear()
        self._buffers.clear()
