"""Reading stored tensors, whole or by rows, into memory of their own."""

from __future__ import annotations

import errno
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.tensors.header import StoredTensor, read_header


def number_type(name: str) -> np.dtype[Any]:
    """Return the numpy type of a stored number format, those of ``ml_dtypes`` included."""
    return np.dtype(getattr(ml_dtypes, name, name))


def read_rows(tensor: StoredTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows ``start`` to ``stop`` of the first axis, in the stored number format.

    A tensor without axes is one row, (1,).

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    dtype = number_type(tensor.dtype)
    rows = np.empty((stop - start, *tensor.shape[1:]), dtype)
    offset = tensor.start + start * prod(tensor.shape[1:]) * dtype.itemsize
    _fill(rows, tensor, offset)
    return rows


def read_tensor(tensor: StoredTensor) -> NDArray[Any]:
    """Return a whole tensor, in the stored number format.

    Raises:
        ModelError: if the file cannot be read or ends early.
    """
    values = np.empty(tensor.shape, number_type(tensor.dtype))
    _fill(values, tensor, tensor.start)
    return values


def read_tensors(file: Path) -> dict[str, NDArray[Any]]:
    """Return all tensors of a file, in the stored number formats.

    Raises:
        ModelError: if the file cannot be read, is cut short or contradicts itself.
    """
    return {name: read_tensor(tensor) for name, tensor in read_header(file).items()}


def _fill(values: NDArray[Any], tensor: StoredTensor, offset: int) -> None:
    buffer = values.reshape(-1).view(np.uint8).data
    try:
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(offset)
            while buffer:
                count = file.readinto(buffer)
                if not count:
                    raise ModelError(f"{tensor.file} ends early: it is damaged; copy it again.")
                buffer = buffer[count:]
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(error.strerror) from error
        raise ModelError(f"{tensor.file} cannot be read: {error.strerror or error}.") from error
