"""Reading stored tensors, whole or by rows, into memory of their own."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.gguf.rows import read_gguf_rows
from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune.tensors.header import StoredTensor, read_header
from edgetune.tensors.mxfp4 import Mxfp4Tensor
from edgetune.tensors.mxfp4_values import read_values
from edgetune.tensors.raw import fill, number_type

__all__ = ["number_type", "read_rows", "read_tensor", "read_tensors"]


def read_rows(tensor: StoredTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows ``start`` to ``stop`` of the first axis, in the stored number format.

    A tensor without axes is one row, (1,). What is in blocks comes as float32.

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    if isinstance(tensor, GgufTensor):
        return read_gguf_rows(tensor, start, stop)
    if isinstance(tensor, Mxfp4Tensor):
        return read_values(tensor)[start:stop]
    dtype = number_type(tensor.dtype)
    rows = np.empty((stop - start, *tensor.shape[1:]), dtype)
    fill(rows, tensor.file, tensor.start + start * prod(tensor.shape[1:]) * dtype.itemsize)
    return rows


def read_tensor(tensor: StoredTensor) -> NDArray[Any]:
    """Return a whole tensor, in the stored number format; see :func:`read_rows`.

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    if isinstance(tensor, GgufTensor):
        return read_gguf_rows(tensor, 0, tensor.shape[0])
    if isinstance(tensor, Mxfp4Tensor):
        return read_values(tensor)
    values = np.empty(tensor.shape, number_type(tensor.dtype))
    fill(values, tensor.file, tensor.start)
    return values


def read_tensors(file: Path) -> dict[str, NDArray[Any]]:
    """Return all tensors of a file, in the stored number formats.

    Raises:
        ModelError: if the file cannot be read, is cut short or contradicts itself.
    """
    return {name: read_tensor(tensor) for name, tensor in read_header(file).items()}
