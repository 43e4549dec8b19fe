"""Rows of a tensor of a GGUF file, as the checkpoint had them."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.gguf.dequantize import dequantize
from edgetune.tensors.gguf.latents import LatentTensor
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
    if isinstance(tensor, LatentTensor):
        return _latents(tensor, start, stop)
    if len(tensor.file_shape) <= 1:
        return _vector(tensor)[start:stop]
    if tensor.transposed:
        return _columns(tensor, start, stop)
    rows = _numbers(tensor, block_rows(tensor, start, stop))
    rows = rows.reshape(stop - start, *tensor.shape[1:])
    if tensor.columns is None:
        return rows
    places = [tensor.columns.row_in_file(column) for column in range(rows.shape[-1])]
    return np.ascontiguousarray(rows[..., places])


def whole_bytes(tensor: GgufTensor) -> NDArray[np.uint8]:
    """Return all bytes of a tensor, piece after piece, as the file has them.

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    found, place = np.empty(tensor.nbytes, np.uint8), 0
    for piece in tensor.pieces:
        fill(found[place : place + piece.nbytes], piece.file, piece.start)
        place += piece.nbytes
    return found


def block_rows(tensor: GgufTensor, start: int, stop: int) -> NDArray[np.uint8]:
    """Return rows of the checkpoint as the bytes of the file (rows, bytes of a row).

    Of a turned matrix they are those of its outputs.
    """
    if tensor.order is None:
        return _file_rows(tensor, start, stop)
    places = [tensor.order.row_in_file(row) for row in range(start, stop)]
    rising = sorted(places)
    together = groupby(enumerate(rising), lambda pair: pair[1] - pair[0])
    runs = [[place for _, place in run] for _, run in together]
    rows = np.concatenate([_file_rows(tensor, run[0], run[-1] + 1) for run in runs])
    found: NDArray[np.uint8] = rows[np.searchsorted(rising, places)]
    return found


def _latents(tensor: LatentTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows of what makes keys and values of latents (heads * (keys + values), latents).

    Only the heads that have these rows are read.
    """
    height = tensor.shape[0] // tensor.heads
    first, last = start // height, -(-stop // height)
    keys = _of_heads(tensor, tensor.keys, first, last).swapaxes(1, 2)
    values = _of_heads(tensor, tensor.values, first, last)
    rows = np.concatenate([keys, values], axis=1).reshape(-1, tensor.shape[1])
    return rows[start - first * height : stop - first * height]


def _of_heads(tensor: LatentTensor, part: GgufTensor, first: int, last: int) -> NDArray[Any]:
    """Return what a part has of some heads (heads, rows of the file, columns)."""
    rows = part.shape[0] // tensor.heads
    numbers = _numbers(part, _file_rows(part, first * rows, last * rows))
    found = numbers.reshape(last - first, rows, part.shape[1])
    return found.astype(number_type(tensor.dtype), copy=False)


def _vector(tensor: GgufTensor) -> NDArray[Any]:
    values = _numbers(tensor, whole_bytes(tensor)[None]).reshape(-1)
    if tensor.order is not None:
        places = [tensor.order.row_in_file(row) for row in range(len(values))]
        values = values[places]
    if tensor.added:
        values = values.astype(np.float32) - np.float32(tensor.added)
    if tensor.decays:
        values = np.log(-values.astype(np.float32))
    return values


def _columns(tensor: GgufTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows of a matrix whose columns are the file's rows, some of these at a time."""
    height, width = tensor.file_shape
    step = max(1, _TURNED // width)
    spans = ((first, min(first + step, height)) for first in range(0, height, step))
    parts = [_numbers(tensor, block_rows(tensor, *span))[:, start:stop].T for span in spans]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _file_rows(tensor: GgufTensor, start: int, stop: int) -> NDArray[np.uint8]:
    """Return the bytes of rows of the file, (rows, bytes of a row)."""
    width = tensor.row_bytes
    rows, before = np.empty((stop - start, width), np.uint8), 0
    for piece in tensor.pieces:
        after = before + piece.nbytes // width
        first, last = max(start, before), min(stop, after)
        if first < last:
            place = piece.start + (first - before) * width
            fill(rows[first - start : last - start], piece.file, place)
        before = after
    return rows


def _numbers(tensor: GgufTensor, rows: NDArray[np.uint8]) -> NDArray[Any]:
    if not tensor.in_blocks:
        return rows.view(number_type(tensor.dtype))
    blocks = rows.reshape(-1, tensor.kind.nbytes)
    return dequantize(tensor.kind.name, blocks).reshape(len(rows), -1)
