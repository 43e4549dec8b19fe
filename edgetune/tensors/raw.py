"""Bytes of files, read into memory of their own."""

from __future__ import annotations

import errno
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.tensors.header import StoredTensor


def number_type(name: str) -> np.dtype[Any]:
    """Return the numpy type of a stored number format, those of ``ml_dtypes`` included."""
    return np.dtype(getattr(ml_dtypes, name, name))


def fill(values: NDArray[Any], path: Path, offset: int) -> None:
    """Fill an array with the bytes of a file from a place on.

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    buffer = values.reshape(-1).view(np.uint8).data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while buffer:
                count = file.readinto(buffer)
                if not count:
                    raise ModelError(f"{path} ends early: it is damaged; copy it again.")
                buffer = buffer[count:]
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(error.strerror) from error
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error


def plain(tensor: StoredTensor) -> NDArray[Any]:
    """Return a whole tensor of plain numbers, in their format.

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    values = np.empty(tensor.shape, number_type(tensor.dtype))
    fill(values, tensor.file, tensor.start)
    return values


def plain_rows(tensor: StoredTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows of the first axis; a tensor without axes is one row, (1,).

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    dtype = number_type(tensor.dtype)
    rows = np.empty((stop - start, *tensor.shape[1:]), dtype)
    fill(rows, tensor.file, tensor.start + start * prod(tensor.shape[1:]) * dtype.itemsize)
    return rows
