"""Blocks streamed through two slots: while one is computed with, the next is on its way.

Nothing is allocated in the loop: a slot is one buffer, as large as the largest block, and the
matrices are views of it. The last block of the way forward is the first of the way back, so a
step reads each block twice, less the two that are still there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from edgetune_torch.layout import Layout
from edgetune_torch.matrices import StoredMatrix
from edgetune_torch.sources import BlockSource
from edgetune_torch.weights import Blocks, BlockWeights
from edgetune_torch.workspace import Workspace


class Slot(ABC):
    """One place for the matrices of a block."""

    def __init__(self, source: BlockSource, buffer: Tensor, workspace: Workspace) -> None:
        """Hold nothing yet in ``buffer``, which computation reads."""
        self.source = source
        self.buffer = buffer
        self.workspace = workspace
        self.layer: int | None = None
        self._bound: dict[Layout, dict[str, StoredMatrix]] = {}

    @property
    def matrices(self) -> Mapping[str, StoredMatrix]:
        """The matrices of the block in this slot."""
        if self.layer is None:
            raise RuntimeError("an empty slot was read")
        layout = self.source.layout(self.layer)
        if layout not in self._bound:
            self._bound[layout] = layout.bind(self.buffer[: layout.nbytes], self.workspace)
        return self._bound[layout]

    def load(self, layer: int) -> None:
        """Begin to bring a block here; hold none if that fails."""
        self.layer = None
        self._begin(layer)
        self.layer = layer

    def wait(self) -> None:
        """Return when the block is here; forget it if that failed."""
        try:
            self._finish()
        except BaseException:
            self.layer = None
            raise

    @abstractmethod
    def _begin(self, layer: int) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    @abstractmethod
    def release(self) -> None:
        """Say that everything computed so far was the last that reads this slot."""


class HostSlot(Slot):
    """A slot in host memory, filled by a thread that reads files."""

    def __init__(
        self, source: BlockSource, size: int, workspace: Workspace, reader: ThreadPoolExecutor
    ) -> None:
        """Allocate ``size`` bytes."""
        super().__init__(source, torch.empty(size, dtype=torch.uint8), workspace)
        self._reader = reader
        self._read: Future[None] | None = None

    def _begin(self, layer: int) -> None:
        self._read = self._reader.submit(self.source.read, layer, self.buffer)

    def _finish(self) -> None:
        if self._read is not None:
            read, self._read = self._read, None
            read.result()

    def release(self) -> None:
        """Do nothing: a CPU has finished when its functions return."""


class StreamedMatrix:
    """The matrix of one block, in whichever slot that block is at the moment."""

    def __init__(self, stream: StreamedBlocks, layer: int, key: str) -> None:
        """Stand for a matrix that need not be present yet."""
        self._stream, self._layer, self._key = stream, layer, key

    @property
    def _matrix(self) -> StoredMatrix:
        return self._stream.slot_of(self._layer).matrices[self._key]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self._matrix.shape

    @property
    def workspace(self) -> Workspace:
        """Scratch memory for products with this matrix."""
        return self._matrix.workspace

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix as plain numbers; see :class:`edgetune_torch.matrices.Matrix`."""
        return self._matrix.dense(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return self._matrix.nbytes


class StreamedBlocks(Blocks):
    """Blocks of which at most two are present."""

    def __init__(
        self,
        blocks: Sequence[BlockWeights],
        keys: Sequence[Sequence[str]],
        slots: tuple[Slot, Slot],
    ) -> None:
        """Give the blocks, which have their small tensors only, their matrices of these keys."""
        super().__init__(blocks)
        self._slots = slots
        self._last = slots[1]
        for layer, block in enumerate(self._blocks):
            block.matrices = {key: StreamedMatrix(self, layer, key) for key in keys[layer]}

    def slot_of(self, layer: int) -> Slot:
        """Return the slot that a block is in, or comes into."""
        for slot in self._slots:
            if slot.layer == layer:
                return slot
        raise RuntimeError(f"block {layer} is not present: it was used outside of its turn")

    def walk(self, layers: Sequence[int]) -> Iterator[int]:
        """Yield the layers, each when it is present, with the next one on its way."""
        for index, layer in enumerate(layers):
            slot = self._last = self._load(layer)
            slot.wait()
            if index + 1 < len(layers):
                self._load(layers[index + 1])
            try:
                yield layer
            finally:  # a walk that is broken off has queued work as well
                slot.release()

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the slots."""
        return sum(slot.buffer.nbytes for slot in self._slots)

    def close(self) -> None:
        """Wait for what is on its way, then let go of everything."""
        for slot in self._slots:
            slot.wait()
        self._blocks.clear()
        del self._slots, self._last

    def _load(self, layer: int) -> Slot:
        """Return the slot of a layer; begin to load it where it is not, least recent slot first."""
        for slot in self._slots:
            if slot.layer == layer:
                return slot
        first, second = self._slots
        slot = second if self._last is first else first
        if slot.layer is not None:
            slot.wait()  # what an interrupted walk had begun to load
        slot.load(layer)
        return slot
