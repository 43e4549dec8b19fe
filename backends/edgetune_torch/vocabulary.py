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
from edgetune_torch import kernels
from edgetune_torch.int8 import Int8Matrix
from edgetune_torch.pages import Extent, Files, bytes_of
from edgetune_torch.row_formats import PlainRows, RowFormat
from edgetune_torch.trained import gradient_of
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

    def __init__(self, weight: Tensor, form: RowFormat) -> None:
        """Keep ``weight``, V rows in a format."""
        self.weight = weight
        self.form = form

    @property
    def dtype(self) -> torch.dtype:
        """Number format of its rows."""
        return self.form.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.weight.nbytes

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the rows of tokens."""
        found = self.form.looked_up(self.weight[tokens.reshape(-1)])
        return found.view(*tokens.shape, found.shape[-1])


class FileEmbedding:
    """An embedding of which only the rows that are looked up are ever read."""

    nbytes = 0

    def __init__(self, stored: StoredTensor, form: RowFormat, files: Files) -> None:
        """Read from the checkpoint's own file, whose rows are in a format."""
        self.stored = stored
        self.form = form
        self.files = files
        self.dtype = form.dtype

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the rows of tokens: each different one is read once."""
        wanted, places = torch.unique(tokens.cpu(), return_inverse=True)
        found = self.form.empty(len(wanted))
        memory, stride = bytes_of(found), found.nbytes // max(1, len(wanted))
        for place, row in enumerate(wanted.tolist()):
            start = self.stored.start + row * stride
            self.files.read(Extent(self.stored.file, start, stride, place * stride), memory)
        return self.form.looked_up(found)[places].to(tokens.device)


class HeadRows(ABC):
    """The output projection (V, D), a slice of rows at a time."""

    streamed = False
    """Whether a slice is costly to have again."""
    learns = False
    """Whether it is trained, and wants the gradient of its own rows."""

    def __init__(self, shape: tuple[int, int], workspace: Workspace) -> None:
        """Slice ``shape`` evenly, whatever holds the rows: results do not depend on it."""
        self.vocabulary, self.hidden = shape
        self.workspace = workspace
        self.height = CPU_SLICE if workspace.device.type == "cpu" else CARD_SLICE

    @abstractmethod
    def slices(self, dtype: torch.dtype) -> Iterator[Slice]:
        """Yield all rows from the first to the last; a slice is valid until the next one."""

    def learn(self, span: slice, logits_grad: Tensor, x: Tensor) -> None:  # noqa: B027
        """Take the gradient (C, W) of a slice's logits, made of x (C, D): most are frozen."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that stay on the device."""

    def close(self) -> None:  # noqa: B027  # most have nothing to give back
        """Give everything back."""

    def _spans(self) -> list[slice]:
        starts = range(0, self.vocabulary, self.height)
        return [slice(start, min(start + self.height, self.vocabulary)) for start in starts]


class ResidentHead(HeadRows):
    """A head on the device as it is stored; a tied one is the embedding's own tensor."""

    def __init__(
        self,
        weight: Tensor,
        form: RowFormat,
        shape: tuple[int, int],
        workspace: Workspace,
        *,
        shared: bool,
    ) -> None:
        """Keep ``weight``, the rows of ``shape`` in a format; ``shared`` memory is counted elsewhere."""
        super().__init__(shape, workspace)
        self.weight = weight
        self.form = form
        self.shared = shared

    def slices(self, dtype: torch.dtype) -> Iterator[Slice]:
        """Yield all rows: at once where nothing is to be unpacked and a kernel wants them so."""
        if self.form == PlainRows(self.hidden, dtype) and kernels.served(self.weight.device):
            yield slice(0, self.vocabulary), self.weight
            return
        for span in self._spans():
            yield span, self.form.multiplied(self.weight[span], dtype, self.workspace)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix, if it is not the embedding's."""
        return 0 if self.shared else self.weight.nbytes


class TrainedHead(HeadRows):
    """A float32 head that is trained, whose gradient is added up in place."""

    learns = True

    def __init__(self, weight: Tensor, workspace: Workspace) -> None:
        """Take the trained tensor (V, D), which is the method's."""
        super().__init__((weight.shape[0], weight.shape[1]), workspace)
        self.weight = weight
        self.form = PlainRows(weight.shape[1], weight.dtype)

    def slices(self, dtype: torch.dtype) -> Iterator[Slice]:
        """Yield all rows."""
        weight = self.weight.detach()
        for span in self._spans():
            yield span, self.form.multiplied(weight[span], dtype, self.workspace)

    def learn(self, span: slice, logits_grad: Tensor, x: Tensor) -> None:
        """Add the gradient of a slice of rows (W, D)."""
        grad, x = gradient_of(self.weight)[span], x.to(logits_grad.dtype)
        if grad.dtype == x.dtype:
            grad.addmm_(logits_grad.T, x)
        else:
            grad += logits_grad.T @ x

    @property
    def nbytes(self) -> int:
        """None: the bytes are the method's."""
        return 0


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
        self,
        stored: StoredTensor,
        form: RowFormat,
        files: Files,
        reader: ThreadPoolExecutor,
        workspace: Workspace,
    ) -> None:
        """Read with ``reader`` while the slice before is computed with."""
        super().__init__((stored.shape[0], stored.shape[1]), workspace)
        self.stored = stored
        self.form = form
        self.files = files
        self.reader = reader
        pinned = workspace.device.type == "cuda"
        self._buffers = [form.empty(self.height, pin_memory=pinned) for _ in range(2)]

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
                moved = rows.to(self.workspace.device)
                yield span, self.form.multiplied(moved, dtype, self.workspace)
                del moved  # before the next one is there
        finally:
            coming.exception()  # a walk that was broken off must not leave a read behind

    def _read(self, span: slice, buffer: Tensor) -> Tensor:
        rows = buffer[: span.stop - span.start]
        start = self.stored.start + span.start * (buffer.nbytes // len(buffer))
        self.files.read(Extent(self.stored.file, start, rows.nbytes), bytes_of(rows))
        return rows

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def close(self) -> None:
        """Let go of the buffers."""
        self._buffers.clear()
