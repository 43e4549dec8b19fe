"""Where the bytes of a block's matrices come from: the checkpoint, or the cache of quantized ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from edgetune.errors import ModelError
from edgetune.model import LocalModel, StoredTensor
from edgetune.tensors.finite import require_finite
from edgetune_torch.layout import Fitting, Layout
from edgetune_torch.pages import Extent, Files, bytes_of
from edgetune_torch.workspace import Workspace

CHUNK = 1 << 22
"""Bytes of a tensor that are verified together."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class BlockSource(Protocol):
    """Fills buffers with the matrices of blocks, the same bytes every time."""

    def layout(self, layer: int) -> Layout:
        """Return how a block lies in its buffer."""

    def read(self, layer: int, buffer: Tensor) -> None:
        """Fill a host buffer of at least the layout's size."""


class Checkpoint:
    """The model's own files; matrices are quantized as they are read."""

    def __init__(
        self,
        model: LocalModel,
        quantization: str,
        files: Files,
        check: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Prepare to read ``model``; ``check`` is called before each tensor and may raise."""
        self.model = model
        self.quantization = quantization
        self.files = files
        self._check = check
        self._layouts: dict[tuple[torch.dtype, ...], Layout] = {}
        self._finite: set[int] = set()

    def layout(self, layer: int) -> Layout:
        """Return how a block lies in its buffer; blocks of the same number formats share one."""
        linears = self.model.shape.linears
        stored = (self._stored(layer, fitting) for fitting in (linear.module for linear in linears))
        dtypes = tuple(dtype_of(tensor) for tensor in stored)
        if dtypes not in self._layouts:
            self._layouts[dtypes] = Layout(linears, self.quantization, dtypes)
        return self._layouts[dtypes]

    def read(self, layer: int, buffer: Tensor) -> None:
        """Read the matrices of a block one after the other; see :class:`BlockSource`."""
        self._check(False)
        layout, memory = self.layout(layer), bytes_of(buffer)
        for stored, extent in self._extents(layer, layout):
            self.files.read(extent, memory)
            if layer not in self._finite:  # a streamed block comes again and again
                require_finite(stored, memory[extent.offset : extent.offset + extent.length])
        self._finite.add(layer)
        quantized = [item for item in layout.fittings if item.format.quantized]
        matrices = layout.bind(buffer[: layout.nbytes], Workspace(buffer.device))
        for item in quantized:
            values = self.tensor(self._stored(layer, item.linear.module))
            matrices[item.linear.role].write(values.T if item.linear.transposed else values)

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Return one tensor in memory of its own."""
        self._check(False)
        values = torch.empty(stored.shape, dtype=dtype_of(stored))
        self.files.read(Extent(stored.file, stored.start, stored.nbytes), bytes_of(values))
        require_finite(stored, bytes_of(values))
        return values

    def verify(self, stored: StoredTensor) -> None:
        """Read a tensor that will be read by rows, some at a time, to see that it is usable.

        Raises:
            ModelError: if it is not.
        """
        dtype_of(stored)
        buffer = bytes_of(torch.empty(min(CHUNK, stored.nbytes), dtype=torch.uint8))
        for start in range(stored.start, stored.end, CHUNK):
            length = min(CHUNK, stored.end - start)
            self.files.read(Extent(stored.file, start, length), buffer)
            require_finite(stored, buffer[:length])

    def _extents(self, layer: int, layout: Layout) -> Iterator[tuple[StoredTensor, Extent]]:
        """Yield what can be read to its place as it is."""
        for item in layout.fittings:
            if not item.format.quantized:
                stored = self._stored(layer, item.linear.module)
                yield stored, self._extent(stored, item)

    def _extent(self, stored: StoredTensor, item: Fitting) -> Extent:
        return Extent(stored.file, stored.start, stored.nbytes, item.places["values"].offset)

    def _stored(self, layer: int, module: str) -> StoredTensor:
        return self.model.tensors[f"{self.model.shape.block(layer)}{module}.weight"]


def dtype_of(stored: StoredTensor) -> torch.dtype:
    """Return the number format of a tensor in a file.

    Raises:
        ModelError: if it is not a floating one.
    """
    if stored.dtype not in DTYPES:
        raise ModelError(
            f"{stored.file} holds a tensor of type {stored.dtype}; "
            f"supported: {', '.join(DTYPES)}. Use a checkpoint that is not quantized."
        )
    return DTYPES[stored.dtype]
