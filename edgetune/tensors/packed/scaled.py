"""Numbers of eight bits with scales for blocks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed.kinds import ScaledTensor
from edgetune.tensors.packed.spans import spans
from edgetune.tensors.raw import fill, number_type, plain

EXPONENT_BIAS: Final = 127
NO_NUMBER: Final = 255
"""An exponent that stands for none."""


def scaled_rows(tensor: ScaledTensor, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
    """Yield rows as float32, some at a time."""
    _, inputs = tensor.size
    table, scales = _table(tensor.kind), _grid(tensor, tensor.scales) * np.float32(tensor.factor)
    zeros = None if tensor.zeros is None else _grid(tensor, tensor.zeros)
    for first, last in spans(start, stop, inputs):
        codes = np.empty((last - first, inputs), np.uint8)
        fill(codes, tensor.file, tensor.start + first * inputs)
        values = np.take(table, codes)
        places = _grid_rows(tensor, first, last)
        if zeros is not None:
            values -= _spread(tensor, zeros[places])
        values *= _spread(tensor, scales[places])
        yield values


def kept_int8(tensor: ScaledTensor) -> dict[str, NDArray[Any]]:
    """Return codes (N, K) and scales (N, 1) of whole numbers with one scale a row."""
    codes = np.empty(tensor.size, np.int8)
    fill(codes, tensor.file, tensor.start)
    scales = _grid(tensor, tensor.scales)[_grid_rows(tensor, 0, len(codes))]
    return {"codes": codes, "scales": scales * np.float32(tensor.factor)}


def scale_values(stored: StoredTensor) -> NDArray[np.float32]:
    """Return scales as float32; bytes that are no floats are exponents of two.

    Raises:
        ModelError: if one of these is none.
    """
    found = plain(stored)
    if stored.dtype not in {"uint8", "float8_e8m0fnu"}:
        return found.astype(np.float32)
    exponents = found.view(np.uint8)
    if np.any(exponents == NO_NUMBER):
        raise ModelError(
            f"The tensor {stored.name} in {stored.file} has values that are NaN, and cannot be "
            "used. Fetch the model again."
        )
    return np.exp2(exponents.astype(np.float32) - EXPONENT_BIAS)


def _grid(tensor: ScaledTensor, stored: StoredTensor) -> NDArray[np.float32]:
    """Return one number for each block, the blocks of a stack below each other."""
    values = plain(stored).astype(np.float32) if stored is tensor.zeros else scale_values(stored)
    columns = -(-tensor.size[1] // tensor.block[1])
    return values.reshape(-1, columns)


def _grid_rows(tensor: ScaledTensor, start: int, stop: int) -> NDArray[np.int64]:
    """Return in which rows of the grid the numbers of rows are."""
    rows = np.arange(tensor.first + start, tensor.first + stop, dtype=np.int64)
    matrix, row = np.divmod(rows, tensor.height)
    places: NDArray[np.int64] = (
        matrix * -(-tensor.height // tensor.block[0]) + row // tensor.block[0]
    )
    return places


def _spread(tensor: ScaledTensor, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return numbers of blocks for each column (R, K), or for all (R, 1)."""
    if rows.shape[1] == 1:
        return rows
    return np.repeat(rows, tensor.block[1], axis=1)[:, : tensor.size[1]]


@cache
def _table(kind: str) -> NDArray[np.float32]:
    """Return the number that each byte stands for."""
    return np.arange(256, dtype=np.uint8).view(number_type(kind)).astype(np.float32)
