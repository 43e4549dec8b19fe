"""Bytes of files, read into memory of their own."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError


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
