"""Rows of a tensor of a GGUF file, as the checkpoint had them."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.gguf.dequantize import dequantize
from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune.tensors.raw import fill, number_type

_TURNED = 1 << 20
"""Numbers of a turned matrix that are read at a time."""


def read_gguf_rows(tensor: GgufTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows ``start`` to ``stop`` of the checkpoint's first axis; all of a vector is a row.

    What is in blocks, or was added to, comes as float32, all else in the file's number format.

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    if len(tensor.file_shape) <= 1:
        return _vector(tensor)[start:stop]
    if tensor.transposed:
        return _columns(tensor, start, stop)
    rows = _in_order(tensor, start, stop).reshape(stop - start, *tensor.shape[1:])
    if tensor.columns is None:
        return rows
    places = [tensor.columns.row_in_file(column) for column in range(rows.shape[-1])]
    return np.ascontiguousarray(rows[..., places])


def _vector(tensor: GgufTensor) -> NDArray[Any]:
    values = _numbers(tensor, _file_rows(tensor, 0, 1)).reshape(-1)
    if tensor.order is not None:
        places = [tensor.order.row_in_file(row) for row in range(len(values))]
        values = values[places]
    if tensor.added:
        values = values.astype(np.float32) - np.float32(tensor.added)
    if tensor.decays:
        values = np.log(-values.astype(np.float32))
    return values


def _in_order(tensor: GgufTensor, start: int, stop: int) -> NDArray[Any]:
    if tensor.order is None:
        return _numbers(tensor, _file_rows(tensor, start, stop))
    places = [tensor.order.row_in_file(row) for row in range(start, stop)]
    together = groupby(enumerate(places), lambda pair: pair[1] - pair[0])
    runs = [[place for _, place in run] for _, run in together]
    rows = [_file_rows(tensor, run[0], run[-1] + 1) for run in runs]
    return _numbers(tensor, np.concatenate(rows))


def _columns(tensor: GgufTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows of a matrix whose columns are the file's rows, some of these at a time."""
    height, width = tensor.file_shape
    step = max(1, _TURNED // width)
    parts = [
        _numbers(tensor, _file_rows(tensor, first, min(first + step, height)))[:, start:stop].T
        for first in range(0, height, step)
    ]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _file_rows(tensor: GgufTensor, start: int, stop: int) -> NDArray[np.uint8]:
    """Return the bytes of rows of the file, (rows, bytes of a row)."""
    rows = np.empty((stop - start, tensor.row_bytes), np.uint8)
    fill(rows, tensor.file, tensor.start + start * tensor.row_bytes)
    return rows


def _numbers(tensor: GgufTensor, rows: NDArray[np.uint8]) -> NDArray[Any]:
    if not tensor.in_blocks:
        return rows.view(number_type(tensor.dtype))
    blocks = rows.reshape(-1, tensor.kind.nbytes)
    return dequantize(tensor.kind.name, blocks).reshape(len(rows), -1)
