"""Where the bytes of a block's matrices come from: the checkpoint, or the cache of quantized ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.errors import ModelError
from edgetune.model import LocalModel, StoredTensor
from edgetune.shape import Linear
from edgetune.tensors.finite import require_finite
from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune.tensors.gguf.types import BY_NAME, QUANTIZED
from edgetune.tensors.packed import PackedTensor
from edgetune.tensors.packed.values import kept_parts, packed_values
from edgetune.tensors.reader import read_tensor
from edgetune_torch.layout import Fitting, Layout, StoredAs
from edgetune_torch.matrices import WritableMatrix
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
        self._layouts: dict[tuple[int, tuple[StoredAs, ...]], Layout] = {}
        self._finite: set[int] = set()

    @property
    def converts(self) -> bool:
        """Whether blocks hold other bytes than the files."""
        packed = self.model.shape.published is not None
        return packed or self.quantization not in {"none", "gguf"}

    def layout(self, layer: int) -> Layout:
        """Return how a block lies in its buffer; blocks that are alike share one."""
        shape = self.model.shape
        linears = shape.blocks[layer].matrices
        stored = tuple(stored_as(self._stored(layer, x.module), x) for x in linears)
        key = (shape.alike[layer], stored)
        if key not in self._layouts:
            self._layouts[key] = Layout(linears, self.quantization, stored)
        return self._layouts[key]

    def read(self, layer: int, buffer: Tensor) -> None:
        """Read the matrices of a block one after the other; see :class:`BlockSource`."""
        self._check(False)
        layout, memory = self.layout(layer), bytes_of(buffer)
        for stored, extent in self._extents(layer, layout):
            self._read(stored, extent, memory)
            if layer not in self._finite:  # a streamed block comes again and again
                require_finite(stored, memory[extent.offset : extent.offset + extent.length])
        self._finite.add(layer)
        matrices = layout.bind(buffer[: layout.nbytes], Workspace(buffer.device))
        for item in layout.fittings:
            matrix = matrices[item.linear.key]
            if item.format.converted and isinstance(matrix, WritableMatrix):
                self._write(matrix, self._stored(layer, item.linear.module), item.linear)

    def _write(self, matrix: WritableMatrix, stored: StoredTensor, linear: Linear) -> None:
        """Fill a matrix with its numbers, or with the codes of a file that has the same format."""
        if isinstance(stored, PackedTensor):
            self._check(False)
            parts = kept_parts(stored, self.quantization)
            if parts is not None:
                matrix.take(parts)
                return
        values = self.tensor(stored)
        matrix.write(values.T if linear.transposed else values)

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Return one tensor in memory of its own, blocks as float32."""
        self._check(False)
        if isinstance(stored, GgufTensor):
            return self._of_gguf(stored)
        if isinstance(stored, PackedTensor):
            return torch.from_numpy(_torch_numbers(packed_values(stored))).view(dtype_of(stored))
        values = torch.empty(stored.shape, dtype=dtype_of(stored))
        self.files.read(Extent(stored.file, stored.start, stored.nbytes), bytes_of(values))
        require_finite(stored, bytes_of(values))
        return values

    def _of_gguf(self, stored: GgufTensor) -> Tensor:
        self.verify(stored)
        found = torch.from_numpy(_torch_numbers(read_tensor(stored)))
        return found.view(dtype_of(stored)) if stored.dtype == "bfloat16" else found

    def packed(self, stored: StoredTensor) -> Tensor:
        """Return the rows of a matrix in blocks as bytes (rows, bytes of a row)."""
        assert isinstance(stored, GgufTensor)
        self._check(False)
        rows = torch.empty(stored.file_shape[0], stored.row_bytes, dtype=torch.uint8)
        self.files.read(Extent(stored.file, stored.start, stored.nbytes), bytes_of(rows))
        require_finite(stored, bytes_of(rows))
        return rows

    def verify(self, stored: StoredTensor) -> None:
        """Read a tensor that will be read by rows, some at a time, to see that it is usable.

        Raises:
            ModelError: if it is not.
        """
        dtype_of(stored)
        for piece in stored.pieces if isinstance(stored, GgufTensor) else (stored,):
            width = BY_NAME[piece.dtype].nbytes if piece.dtype in QUANTIZED else 8
            size = max(CHUNK // width, 1) * width
            buffer = bytes_of(torch.empty(min(size, piece.nbytes), dtype=torch.uint8))
            for start in range(piece.start, piece.end, size):
                length = min(size, piece.end - start)
                self.files.read(Extent(piece.file, start, length), buffer)
                require_finite(piece, buffer[:length])

    def _extents(self, layer: int, layout: Layout) -> Iterator[tuple[StoredTensor, Extent]]:
        """Yield what can be read to its place as it is."""
        for item in layout.fittings:
            if not item.format.converted:
                stored = self._stored(layer, item.linear.module)
                yield stored, self._extent(stored, item)

    def _read(self, stored: StoredTensor, extent: Extent, memory: memoryview) -> None:
        """Read a matrix to its place; rows that a file has in another order go to their own."""
        if not isinstance(stored, GgufTensor) or (stored.order is None and not stored.then):
            self.files.read(extent, memory)
            return
        width, offset = stored.row_bytes, extent.offset
        for piece, runs in stored.row_runs():
            spans = ((offset + row * width, count * width) for row, count in runs)
            places = [memory[start : start + length] for start, length in spans]
            self.files.scatter(Extent(piece.file, piece.start, piece.nbytes), places)

    def _extent(self, stored: StoredTensor, item: Fitting) -> Extent:
        return Extent(stored.file, stored.start, stored.nbytes, item.places["values"].offset)

    def _stored(self, layer: int, module: str) -> StoredTensor:
        return self.model.tensors[f"{self.model.shape.block(layer)}{module}.weight"]


def stored_as(stored: StoredTensor, linear: Linear) -> StoredAs:
    """Return how a file has the matrix of a projection."""
    if not isinstance(stored, GgufTensor):
        packed = isinstance(stored, PackedTensor)
        return StoredAs(dtype_of(stored), transposed=linear.transposed, packed=packed)
    if stored.in_blocks:
        return StoredAs(dtype_of(stored), blocks=stored.dtype, columns=stored.columns)
    return StoredAs(dtype_of(stored), packed=stored.made)


def _torch_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as torch takes them from numpy, bfloat16 as its bits."""
    return values.view(np.int16) if values.dtype.name == "bfloat16" else values


def dtype_of(stored: StoredTensor) -> torch.dtype:
    """Return the number format of a tensor in a file; blocks become float32.

    Raises:
        ModelError: if it is not a floating one.
    """
    if isinstance(stored, GgufTensor) and stored.in_blocks:
        return torch.float32
    if stored.dtype not in DTYPES:
        raise ModelError(
            f"{stored.file} holds a tensor of type {stored.dtype}; "
            f"supported: {', '.join(DTYPES)}. Use a checkpoint that is not quantized."
        )
    return DTYPES[stored.dtype]
