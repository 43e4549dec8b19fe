"""Reading stored tensors, whole or by rows, into memory of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgetune.tensors.gguf.rows import read_gguf_rows
from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune.tensors.header import StoredTensor, read_header
from edgetune.tensors.packed import PackedTensor
from edgetune.tensors.packed.values import packed_rows, packed_values
from edgetune.tensors.raw import number_type, plain, plain_rows

__all__ = ["number_type", "read_rows", "read_tensor", "read_tensors"]


def read_rows(tensor: StoredTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows ``start`` to ``stop`` of the first axis, in the stored number format.

    A tensor without axes is one row, (1,). What is in a GGUF file's blocks comes as float32, what
    is packed in its ``dtype``.

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    if isinstance(tensor, GgufTensor):
        return read_gguf_rows(tensor, start, stop)
    if isinstance(tensor, PackedTensor):
        return packed_rows(tensor, start, stop)
    return plain_rows(tensor, start, stop)


def read_tensor(tensor: StoredTensor) -> NDArray[Any]:
    """Return a whole tensor, in the stored number format; see :func:`read_rows`.

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    if isinstance(tensor, GgufTensor):
        rows = tensor.shape[0] if tensor.shape else 1
        return read_gguf_rows(tensor, 0, rows).reshape(tensor.shape)
    if isinstance(tensor, PackedTensor):
        return packed_values(tensor)
    return plain(tensor)


def read_tensors(file: Path) -> dict[str, NDArray[Any]]:
    """Return all tensors of a file, in the stored number formats.

    Raises:
        ModelError: if the file cannot be read, is cut short or contradicts itself.
    """
    return {name: read_tensor(tensor) for name, tensor in read_header(file).items()}
