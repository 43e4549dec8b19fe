"""The two matrices as tall as the vocabulary: the embedding by rows, the head by slices of rows.

V vocabulary, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from edgetune.model import StoredTensor
from edgetune_torch.int8 import Int8Matrix
from edgetune_torch.pages import Extent, Files, bytes_of
from edgetune_torch.sources import dtype_of
from edgetune_torch.workspace import Workspace

CPU_SLICE, CARD_SLICE = 2048, 4096
"""Rows of the head multiplied at a time. A CPU widens them first; a card holds two slices of a head
that is elsewhere or in another format."""

Slice = tuple[slice, Tensor]


class Embedding(Protocol):
    """The token embedding (V, D)."""

    @property
    def dtype(self) -> torch.dtype:
        """Number format in which it is stored."""

    @property
    def nbytes(self) -> int:
        """Bytes that stay on the device."""

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the rows (..., D) of tokens (...), in the stored format."""


class ResidentEmbedding:
    """An embedding on the device."""

    def __init__(self, weight: Tensor) -> None:
        """Keep ``weight`` (V, D)."""
        self.weight = weight

    @property
    def dtype(self) -> torch.dtype:
        """Number format in which it is stored."""
        return self.weight.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.weight.nbytes

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the rows of tokens."""
        return self.weight[tokens]


class FileEmbedding:
    """An embedding of which only the rows that are looked up are ever read."""

    nbytes = 0

    def __init__(self, stored: StoredTensor, files: Files) -> None:
        """Read from the checkpoint's own file."""
        self.stored = stored
        self.files = files
        self.dtype = dtype_of(stored)

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the rows of tokens: each different one is read once."""
        wanted, places = torch.unique(tokens.cpu(), return_inverse=True)
        width = self.stored.shape[1]
        found = torch.empty(len(wanted), width, dtype=self.dtype)
        memory, stride = bytes_of(found), width * self.dtype.itemsize
        for place, row in enumerate(wanted.tolist()):
            start = self.stored.start + row * stride
            self.files.read(Extent(self.stored.file, start, stride, place * stride), memory)
        return found[places].to(tokens.device)


class HeadRows(ABC):
    """The output projection (V, D), a slice of rows at a time."""

    streamed = False
    """Whether a slice is costly to have again."""

    def __init__(self, shape: tuple[int, int], workspace: Workspace) -> None:
        """Slice ``shape`` evenly, whatever holds the rows: results do not depend on it."""
        self.vocabulary, self.hidden = shape
        self.workspace = workspace
        self.height = CPU_SLICE if workspace.device.type == "cpu" else CARD_SLICE

    @abstractmethod
    def slices(self, dtype: torch.dtype) -> Iterator[Slice]:
        """Yield all rows from the first to the last; a slice is valid until the next one."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that stay on the device."""

    def close(self) -> None:  # noqa: B027  # most have nothing to give back
        """Give everything back."""

    def _spans(self) -> list[slice]:
        starts = range(0, self.vocabulary, self.height)
        return [slice(start, min(start + self.height, self.vocabulary)) for start in starts]

    def _widened(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        if rows.dtype == dtype:
            return rows
        return self.workspace.take("matrix", tuple(rows.shape), dtype).copy_(rows)


class ResidentHead(HeadRows):
    """A head on the device as it is stored; a tied one is the embedding's own tensor."""

    def __init__(self, weight: Tensor, workspace: Workspace, *, shared: bool) -> None:
        """Keep ``weight`` (V, D); ``shared`` memory is counted elsewhere."""
        super().__init__((weight.shape[0], weight.shape[1]), workspace)
        self.weight = weight
        self.shared = shared

    def slices(self, dtype: torch.dtype) -> Iterator[Slice]:
        """Yield all rows."""
        for span in self._spans():
            yield span, self._widened(self.weight[span], dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix, if it is not the embedding's."""
        return 0 if self.shared else self.weight.nbytes


class Int8Head(HeadRows):
    """A head on the device in eight bits a weight; see :mod:`edgetune_torch.int8`."""

    def __init__(self, matrix: Int8Matrix, workspace: Workspace) -> None:
        """Keep a quantized matrix (V, D)."""
        super().__init__(matrix.shape, workspace)
        self.matrix = matrix

    def slices(self, dtype: torch.dtype) -> Iterator[Slice]:
        """Yield all rows."""
        for span in self._spans():
            yield span, self.matrix.rows(span, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.matrix.nbytes


class FileHead(HeadRows):
    """A head read from the checkpoint's own file, through two buffers of one slice each."""

    streamed = True

    def __init__(
        self, stored: StoredTensor, files: Files, reader: ThreadPoolExecutor, workspace: Workspace
    ) -> None:
        """Read with ``reader`` while the slice before is computed with."""
        super().__init__((stored.shape[0], stored.shape[1]), workspace)
        self.stored = stored
        self.files = files
        self.reader = reader
        pinned = workspace.device.type == "cuda"
        self._buffers = [
            torch.empty(self.height, self.hidden, dtype=dtype_of(stored), pin_memory=pinned)
            for _ in range(2)
        ]

    def slices(self, dtype: torch.dtype) -> Iterator[Slice]:
        """Yield all rows, each slice read while the one before is in use."""
        spans = self._spans()
        coming = self.reader.submit(self._read, spans[0], self._buffers[0])
        try:
            for index, span in enumerate(spans):
                rows = coming.result()
                if index + 1 < len(spans):
                    other = self._buffers[(index + 1) % 2]
                    coming = self.reader.submit(self._read, spans[index + 1], other)
                yield span, self._widened(rows.to(self.workspace.device), dtype)
        finally:
            coming.exception()  # a walk that was broken off must not leave a read behind

    def _read(self, span: slice, buffer: Tensor) -> Tensor:
        rows = buffer[: span.stop - span.start]
        start = self.stored.start + span.start * self.hidden * buffer.dtype.itemsize
        self.files.read(Extent(self.stored.file, start, rows.nbytes), bytes_of(rows))
        return rows

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def close(self) -> None:
        """Let go of the buffers."""
        self._buffers.clear()
